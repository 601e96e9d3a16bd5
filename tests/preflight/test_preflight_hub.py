"""What a preflight asks the hub, and what it says of each answer: models, datasets, and where a result is published."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import chat_rows, run_dict

TOKEN = "hf_PlantedTokenThatMustNeverBeShown"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FOLDER = Path(__file__).parent
ROWS = "".join(json.dumps(row) + "\n" for row in chat_rows() * 20).encode()
REFUSALS = {
    "missing": (404, "RepoNotFound", "Repository not found"),
    "private": (401, "RepoNotFound", "Repository not found"),
    "bad-token": (401, None, "Invalid credentials in Authorization header"),
    "revision": (404, "RevisionNotFound", "Invalid rev id: nope"),
    "odd": (418, None, "I am a teapot, whatever your token"),
    "broken": (503, None, None),
}
GATED = (403, "GatedRepo", "Access is restricted and you are not in the authorized list")
ACCOUNT = {
    "type": "user", "name": "me",
    "orgs": [{"name": "team", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}],
    "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": "write"}},
}  # fmt: skip
READ_TOKEN = "hf_ReadsOnly"


class FakeHub(BaseHTTPRequestHandler):
    """Answers as huggingface.co does, as far as a preflight asks."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(self.path.partition("?")[0]).strip("/")
        part = self.headers.get("Range", "all") if path.endswith(".safetensors") else ""
        self.server.seen.append(f"{self.command} {path} {part}".strip())
        for name, refusal in REFUSALS.items():
            if f"owner/{name}" in path:
                return self.refuse(*refusal)
        if path == "api/whoami-v2":
            return self.whoami()
        if path.endswith("/auth-check/write"):
            return self.answer({}) if "me/there" in path else self.refuse(*self.write_refusal(path))
        if "owner/gated" in path and ("auth-check" in path or "resolve" in path or "datasets" in path):
            return self.refuse(*GATED)
        kind = "datasets" if "datasets" in path else "models"
        files = (
            {"train.jsonl": ROWS, "README.md": b"---\nlicense: mit\n---\n"} if kind == "datasets" else self.server.files
        )
        return self.serve(path, kind, files)

    @staticmethod
    def write_refusal(path):
        return (403, None, "Forbidden") if "other/there" in path else REFUSALS["missing"]

    def whoami(self):
        sent = self.headers.get("Authorization", "")
        if TOKEN not in sent and READ_TOKEN not in sent:
            return self.refuse(401, None, "Invalid user token.")
        role = "write" if TOKEN in sent else "read"
        return self.answer({**ACCOUNT, "auth": {"accessToken": {"role": role}}})

    def serve(self, path, kind, files):
        repository = "owner/gated" if "owner/gated" in path else "owner/good"
        if "/resolve/" in path:
            content = files.get(path.rpartition("/")[2])
            if content is None:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            return self.send(200, content, {"ETag": f'"{len(content)}"', "X-Repo-Commit": COMMIT})
        if "/tree/" in path:
            return self.answer([
                {"type": "file", "path": name, "size": len(content), "oid": name} for name, content in files.items()
            ])  # fmt: skip
        if path.startswith(f"api/{kind}/{repository}"):
            return self.answer({
                "id": repository, "sha": COMMIT, "private": False, "disabled": False,
                "gated": "manual" if repository == "owner/gated" else False,
                "tags": ["llama", "license:apache-2.0"], "siblings": [{"rfilename": name} for name in files],
            })  # fmt: skip
        return self.refuse(404, "EntryNotFound", "Entry not found")

    def answer(self, content):
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def refuse(self, status, code, message):
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.send(status, b'{"error": "no"}', {k: v for k, v in headers.items() if v})

    def send(self, status, body, headers):
        total = len(body)
        wanted = self.headers.get("Range")
        if wanted and status == 200:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or total - 1), total - 1)
            status, body = 206, body[first : last + 1]
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{total}"}
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        """Keep the test's output clean."""


def cases(model, rows):
    """Runs and tokens, by name."""
    with_model, here = {"model": {"source": str(model)}}, {"data": {"source": str(rows)}}

    def of_model(name, **section):
        return run_dict(model={"source": f"owner/{name}", **section}, **here), TOKEN

    def of_data(name, **section):
        return run_dict(**with_model, data={"source": f"owner/{name}", **section}), TOKEN

    def publishing(repository, token=TOKEN, **section):
        return run_dict(**with_model, **here, publish={"repository": repository, **section}), token

    return {
        "good": of_model("good"),
        "good too": of_model("good-too"),  # fetched after its preflight
        "gated": of_model("gated"),
        "missing": of_model("missing"),
        "private": of_model("private"),
        "bad token": of_model("bad-token"),
        "odd": of_model("odd"),
        "revision": of_model("revision", revision="nope"),
        "line break in the token": (of_model("good")[0], f"{TOKEN}\n"),
        "broken": of_model("broken"),
        "rows": of_data("good"),
        "rows missing": of_data("missing"),
        "rows gated": of_data("gated"),
        "rows revision": of_data("revision", revision="nope"),
        "rows of a part": of_data("good", split="train[:50%]"),
        "rows of all splits": of_data("good", split="all"),
        "rows split": of_data("good", split="nope"),
        "rows broken": of_data("broken"),
        "publish there": publishing("me/there"),
        "publish new": publishing("me/new"),
        "publish team": publishing("team/new"),
        "publish readers": publishing("readers/new"),
        "publish other": publishing("other/new"),
        "publish other there": publishing("other/there"),
        "publish read token": publishing("me/new", READ_TOKEN),
        "publish bad token": publishing("me/new", "hf_Unknown"),
        "publish dry run": publishing("other/new", None, dry_run=True),
    }


def ask(endpoint, model, runs, folder):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "NO_PROXY": "*", "no_proxy": "*"}
    environment["PYTHONPATH"] = os.pathsep.join([str(FOLDER), str(FOLDER.parent), str(FOLDER.parent.parent)])
    command = [sys.executable, str(FOLDER / "preflight_client.py"), json.dumps([str(model), runs])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
    assert "RESULTS" in done.stdout, done.stderr[-5000:]
    return json.loads(done.stdout.rpartition("RESULTS")[2]), done.stdout + done.stderr


@pytest.fixture(scope="module")
def asked(tmp_path_factory, tiny_model_dir, chat_rows_file):
    """What the preflight of every run came to, all that was printed, and what the hub was asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.seen = []
    server.files = {p.name: p.read_bytes() for p in tiny_model_dir.iterdir()} | {"README.md": b"# A card"}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        runs = cases(tiny_model_dir, chat_rows_file)
        results, printed = ask(endpoint, tiny_model_dir, runs, tmp_path_factory.mktemp("asked"))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    return results, printed, server.seen


def errors(result):
    return {found["code"] for found in result["findings"] if found["severity"] == "error"}


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("good", set()),
        ("gated", {"model-gated"}),
        ("missing", {"model-not-found"}),
        ("private", {"model-not-found"}),
        ("bad token", {"hub-token-refused"}),
        ("odd", {"model-unreadable"}),
        ("revision", {"model-revision-not-found"}),
        ("line break in the token", {"hub-token-refused"}),
        ("broken", {"hub-unreachable"}),
        ("rows", set()),
        ("rows missing", {"data-not-found"}),
        ("rows gated", {"data-gated"}),
        ("rows revision", {"data-revision-not-found"}),
        ("rows of a part", set()),
        ("rows of all splits", set()),
        ("rows split", {"data-split-not-found"}),
        ("rows broken", {"hub-unreachable"}),
        ("publish there", set()),
        ("publish new", set()),
        ("publish team", set()),
        ("publish readers", {"publish-no-write-access"}),
        ("publish other", {"publish-no-write-access"}),
        ("publish other there", {"publish-no-write-access"}),
        ("publish read token", {"publish-no-write-access"}),
        ("publish bad token", {"hub-token-refused"}),
        ("publish dry run", set()),
    ],
)
def test_each_answer_of_the_hub_has_its_own_code(asked, name, codes):
    assert errors(asked[0][name]) == codes, asked[0][name]["text"]


def test_a_hub_model_is_pinned_licensed_and_brought_without_its_weights(asked):
    results, _printed, seen = asked
    facts = results["good"]["facts"]
    assert facts["model_version"] == COMMIT
    assert facts["license"] == "apache-2.0"
    assert facts["examples"] == 60
    brought = {path.rpartition("/")[2] for path in seen if path.startswith("GET owner/good/resolve/")}
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= brought
    weights = [name for name in brought if ".safetensors" in name]
    assert weights == ["model.safetensors bytes=0-100000"], "more than the header was asked for"


def test_the_tokenizer_of_a_hub_model_is_known_before_it_is_fetched(asked):
    found = asked[0]["good too"]
    assert len(found["facts"]["tokenizer_version"]) == 64
    assert found["facts"]["tokenizer_version"] == found["fetched"]


def test_a_hub_dataset_is_read_as_far_as_the_sample_goes(asked):
    facts = asked[0]["rows"]["facts"]
    assert facts["data_version"] == COMMIT
    assert (facts["rows_sampled"], facts["is_whole"]) == (1000, False)
    assert facts["examples"] == 1000
    part = asked[0]["rows of a part"]["facts"]
    assert (part["rows_sampled"], part["is_whole"], part["rows_total"]) == (1000, False, None)


def test_the_token_is_shown_nowhere(asked):
    results, printed, _seen = asked
    assert TOKEN not in json.dumps(results)
    # At level DEBUG the HTTP library writes a header that it refuses; tasks hand over no such token.
    shown = [line for line in printed.splitlines() if not line.startswith("DEBUG:httpcore2")]
    assert shown
    assert TOKEN not in "".join(shown)


def test_a_hub_that_cannot_be_reached_is_the_only_error(tmp_path, tiny_model_dir, chat_rows_file):
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
    runs = {name: cases(tiny_model_dir, chat_rows_file)[name] for name in ("good", "rows", "publish new")}
    for result in ask(endpoint, tiny_model_dir, runs, tmp_path)[0].values():
        assert errors(result) == {"hub-unreachable"}
