"""Base models from directories, URLs and the hub, and what is said when one cannot be had."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from zero_weights import LLAMA, LLAMA_SHAPES, safetensors_of

from thriftune import artifacts
from thriftune.errors import ModelSourceError
from thriftune.models import fetching as models
from thriftune.models.source import kind_of

TOKEN = "hf_PlantedTokenThatMustNeverBeShown"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOOLS = "additional_chat_templates/tool_use.jinja"
FILES = {
    "config.json": json.dumps(LLAMA).encode(),
    "model.safetensors": safetensors_of(LLAMA_SHAPES),
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"# card",
    TOOLS: b"{{ tools }}",
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"weights of an adapter",
}
# What the hub answers for each repository: status, X-Error-Code, X-Error-Message.
ANSWERS = {
    "owner/gated": (403, "GatedRepo", "Access to model owner/gated is restricted"),
    "owner/missing": (404, "RepoNotFound", "Repository not found"),
    "owner/private": (401, "RepoNotFound", "Repository not found"),
    "owner/revision": (404, "RevisionNotFound", "Invalid rev id: nope"),
    "owner/bad-token": (401, None, "Invalid credentials in Authorization header"),
    "owner/forbidden": (403, None, "Forbidden"),
    "owner/broken": (503, None, None),
    "owner/odd": (418, None, None),
}
_CLIENT = """
import json, logging, sys
logging.basicConfig(level=logging.DEBUG)
from pathlib import Path
from thriftune.models import fetching as models
from thriftune.data import sources
from thriftune.errors import ThriftuneError

def outcome(action):
    try:
        return ["ok", action()]
    except ThriftuneError as error:
        return [type(error).__name__, str(error)]

repositories, token, folder, what = json.loads(sys.argv[1])
results = {r: outcome(lambda: models.version(r, "nope" if r.endswith("revision") else None, token))
           for r in repositories}
if what == "fetch":
    commit = results["owner/good"][1]
    results["fetch"] = outcome(lambda: models.fetch("owner/good", commit, Path(folder), token))
    results["dataset"] = outcome(lambda: sources.version("owner/missing", None, token))
print("RESULTS" + json.dumps(results))
"""


class FakeHub(BaseHTTPRequestHandler):
    """Answers as huggingface.co does, as far as asking for a commit and downloading its files goes."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0].lstrip("/")
        self.server.seen.append((path, self.headers.get("Authorization")))
        for repository, (status, code, message) in ANSWERS.items():
            if repository in path:
                headers = {"X-Error-Code": code, "X-Error-Message": message}
                return self.answer(status, b'{"error": "no"}', {k: v for k, v in headers.items() if v})
        name = path.removeprefix(f"owner/good/resolve/{COMMIT}/")
        if name in FILES:
            return self.answer(200, FILES[name], {"ETag": f'"{name.replace("/", "-")}"', "X-Repo-Commit": COMMIT})
        if path.startswith("api/models/owner/good/tree"):
            return self.answer(200, json.dumps([self.entry(name) for name in FILES]).encode())
        if path.startswith("api/models/owner/good"):
            info = {"id": "owner/good", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            return self.answer(200, json.dumps(info).encode())
        return self.answer(404, b"{}")

    @staticmethod
    def entry(name):
        return {"type": "file", "path": name, "size": len(FILES[name]), "oid": name}

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        """Keep the test's output clean."""


def ask(endpoint, repositories, folder, what="version", token=TOKEN):
    """Ask a hub from a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "NO_PROXY": "*", "no_proxy": "*"}
    arguments = json.dumps([repositories, token, str(folder / "model"), what])
    result = subprocess.run(
        [sys.executable, "-c", _CLIENT, arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert "RESULTS" in result.stdout, result.stderr
    return json.loads(result.stdout.rpartition("RESULTS")[2]), result.stdout + result.stderr


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """What asking the fake hub for every repository came to, all that was printed, and what the hub saw."""
    folder = tmp_path_factory.mktemp("hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        results, printed = ask(endpoint, [*ANSWERS, "owner/good"], folder, "fetch")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    return results, printed, server.seen, folder / "model"


@pytest.mark.parametrize(
    ("repository", "kind", "texts"),
    [
        ("owner/gated", "ModelSourceError", ["model.source = owner/gated", "is gated", "Accept its licence"]),
        ("owner/missing", "ModelSourceError", ["model.source = owner/missing", "is not on the hub", "spelling"]),
        ("owner/private", "ModelSourceError", ["model.source = owner/private", "is private", "token with access"]),
        ("owner/revision", "ModelSourceError", ["model.revision", "no such revision", "commit, tag or branch"]),
        ("owner/bad-token", "ModelSourceError", ["refused the token (HTTP 401)", "valid token"]),
        ("owner/forbidden", "ModelSourceError", ["refused the token (HTTP 403)"]),
        ("owner/odd", "ModelSourceError", ["HTTP 418"]),
        ("owner/broken", "TransientError", ["model.source = owner/broken", "HTTP 503"]),
    ],
)
def test_each_refusal_of_the_hub_has_its_own_error(hub, repository, kind, texts):
    name, message = hub[0][repository]
    assert name == kind
    for text in texts:
        assert text in message


def test_a_dataset_that_is_not_on_the_hub_is_a_data_error(hub):
    name, message = hub[0]["dataset"]
    assert name == "DataError"
    assert "data.source = owner/missing" in message


def test_a_hub_id_is_resolved_to_its_commit_and_fetched_at_it(hub):
    results, _printed, seen, directory = hub
    assert results["owner/good"] == ["ok", COMMIT]
    assert results["fetch"] == ["ok", None]
    downloads = [path for path, _ in seen if "/resolve/" in path]
    assert downloads
    assert all(path.startswith(f"owner/good/resolve/{COMMIT}/") for path in downloads)
    assert artifacts.read_manifest(directory)["source_version"] == COMMIT


def test_no_pickle_is_downloaded_and_no_record_of_the_download_stays(hub):
    directory = hub[3]
    names = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "manifest.json", TOOLS}
    assert (directory / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_the_token_is_sent_to_the_hub_and_shown_nowhere(hub):
    results, printed, seen, directory = hub
    assert f"Bearer {TOKEN}" in {authorization for _, authorization in seen}
    assert TOKEN not in printed
    assert TOKEN not in json.dumps(results)
    for file in directory.rglob("*"):
        assert file.is_dir() or TOKEN.encode() not in file.read_bytes()


def test_a_hub_that_cannot_be_reached_is_transient(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        closed = server.server_port
    results, printed = ask(f"http://127.0.0.1:{closed}", ["owner/good"], tmp_path)
    name, message = results["owner/good"]
    assert name == "TransientError"
    assert "model.source = owner/good: the hub cannot be reached" in message
    assert TOKEN not in printed


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("meta-llama/Llama-2-7b-hf", "hub"),
        ("gpt2", "hub"),
        ("s3://bucket/model", "url"),
        ("gs://bucket/model.gguf", "url"),
        ("models/model.gguf", "gguf"),
        ("/models/llama", "directory"),
        ("./llama", "directory"),
        ("../llama", "directory"),
        ("~/llama", "directory"),
    ],
)
def test_the_kind_of_a_source_follows_its_spelling(source, kind):
    assert kind_of(source) == kind


def test_a_directory_that_exists_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert kind_of("owner/model") == "directory"


@pytest.fixture
def own_model(tmp_path):
    """A directory that looks like a model, with things in it that are none."""
    directory = tmp_path / "own"
    directory.mkdir()
    for name, content in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    (directory / artifacts.MANIFEST).write_text('{"kind": "somebody else\'s"}')
    return directory


def test_the_version_of_a_directory_changes_when_a_file_does(own_model):
    before = models.version(str(own_model))
    assert models.version(str(own_model)) == before
    (own_model / "model.safetensors").write_bytes(b"other weights")
    assert models.version(str(own_model)) != before


@pytest.mark.parametrize("name", ["nothing-here", "empty", "nothing.gguf"])
def test_a_path_that_holds_no_model_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelSourceError, match=rf"model\.source = .*{name}: does not exist or is empty"):
        models.version(str(tmp_path / name))


def test_a_local_directory_becomes_a_whole_one_of_safetensors(own_model, tmp_path):
    destination = tmp_path / "fetched"
    models.fetch(str(own_model), "v1", destination)
    assert {p.name for p in destination.iterdir()} == {
        "additional_chat_templates",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "manifest.json",
    }
    manifest = artifacts.read_manifest(destination)
    assert (manifest["kind"], manifest["source"], manifest["source_version"]) == ("base model", str(own_model), "v1")
    assert "somebody" in (own_model / artifacts.MANIFEST).read_text(), "the source was written to"


def test_a_real_model_directory_can_be_fetched_and_loaded(tiny_model_dir, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models.fetch(str(tiny_model_dir), models.version(str(tiny_model_dir)), tmp_path / "m")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").num_parameters() > 1000
    assert AutoTokenizer.from_pretrained(tmp_path / "m").chat_template


@pytest.fixture
def with_templates(tiny_model_dir, tmp_path):
    """The tiny model with a second chat template, for rows with tools."""
    directory = tmp_path / "with-templates"
    shutil.copytree(tiny_model_dir, directory)
    (directory / TOOLS).parent.mkdir()
    (directory / TOOLS).write_text("{{ tools[0].function.name }}")
    (directory / "additional_chat_templates" / "notes.md").write_text("x")
    return directory


@pytest.mark.parametrize("place", ["directory", "store"])
def test_further_chat_templates_are_taken_over_and_saved_again(with_templates, tiny_tokenizer_dir, tmp_path, place):
    """Rows with tools were refused for want of a template that the model has, and the saved model lacked it too."""
    from thriftune.models.tokenizer import load_tokenizer

    source = str(with_templates) if place == "directory" else f"file://{with_templates}"
    fetched, copied = tmp_path / "fetched", tmp_path / "copied"
    models.fetch(source, "v", fetched)
    models.copy_tokenizer(fetched, copied)
    load_tokenizer(copied).save_pretrained(tmp_path / "saved")
    for directory in (fetched, copied, tmp_path / "saved"):
        tokenizer = load_tokenizer(directory)
        assert set(tokenizer.chat_template) == {"default", "tool_use"}
        tools = [{"type": "function", "function": {"name": "add"}}]
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tools=tools, tokenize=False)
        assert rendered == "add"
    assert not (fetched / "additional_chat_templates" / "notes.md").exists()


def test_an_adapter_beside_the_model_is_left_out_and_that_is_said(tiny_model_dir, random_adapter, tmp_path, caplog):
    """transformers put it on the model and froze all of it: four attempts died of an empty parameter list."""
    from transformers import AutoModelForCausalLM

    both = tmp_path / "both"
    shutil.copytree(tiny_model_dir, both)
    shutil.copytree(random_adapter(1), both, dirs_exist_ok=True)
    for place, source in (("a", str(both)), ("b", f"file://{both}")):
        models.fetch(source, "v", tmp_path / place)
        assert f"{source} holds an adapter next to the model (adapter_config.json), which is left out." in caplog.text
        assert not [file for file in (tmp_path / place).iterdir() if file.name.startswith("adapter")]
        model = AutoModelForCausalLM.from_pretrained(tmp_path / place)
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_weights_of_other_programs_are_not_taken_over(own_model, tmp_path):
    """Mistral ships all of them twice."""
    (own_model / "consolidated.safetensors").write_bytes(FILES["model.safetensors"])
    models.fetch(f"file://{own_model}", "v", tmp_path / "m")
    models.fetch(str(own_model), "v", tmp_path / "n")
    assert {len(list((tmp_path / name).glob("*.safetensors"))) for name in "mn"} == {1}


def test_weights_that_are_missing_are_refused_when_a_model_is_fetched(own_model, tmp_path):
    """The run trained random ones, and ended well."""
    shapes = {f"_orig_mod.{name}": shape for name, shape in LLAMA_SHAPES.items()}
    (own_model / "model.safetensors").write_bytes(safetensors_of(shapes))
    with pytest.raises(ModelSourceError) as caught:
        models.fetch(str(own_model), "v", tmp_path / "m")
    assert f"model.source = {own_model}: 12 of 12 weights are missing" in str(caught.value)
    assert "`_orig_mod.`, left by torch.compile" in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_everything_that_a_directory_lacks_is_said_at_once(tmp_path):
    source = tmp_path / "pickled"
    source.mkdir()
    (source / "notes.txt").write_text("x")
    with pytest.raises(ModelSourceError) as caught:
        models.fetch(str(source), "v", tmp_path / "m")
    text = str(caught.value)
    for part in ("config.json", "weights as *.safetensors", "a tokenizer", "it holds notes.txt", "save_pretrained"):
        assert part in text
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_only_what_a_directory_lacks_is_said(own_model, tmp_path, missing):
    (own_model / missing).unlink()
    with pytest.raises(ModelSourceError) as caught:
        models.fetch(str(own_model), "v", tmp_path / "m")
    lacking = str(caught.value).partition("lacks ")[2].partition(";")[0]
    assert " and " not in lacking
    assert missing.removeprefix("model") in lacking


def test_a_model_in_a_store_is_fetched_through_fsspec(own_model, tmp_path):
    url = f"file://{own_model}"
    before = models.version(url)
    models.fetch(url, before, tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert artifacts.read_manifest(tmp_path / "m")["kind"] == "base model"
    (own_model / "model.safetensors").write_bytes(b"more weights")
    assert models.version(url) != before


def test_a_store_without_the_model_is_refused():
    with pytest.raises(ModelSourceError, match=r"model\.source = memory://no-such-model: holds no files"):
        models.version("memory://no-such-model")


def test_a_broken_gguf_file_is_refused(tmp_path):
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"not a GGUF file")
    with pytest.raises(ModelSourceError, match=r"model\.source = .*broken\.gguf: cannot be read as GGUF"):
        models.fetch(str(file), "v", tmp_path / "m")
    with pytest.raises(ModelSourceError, match="does not exist"):
        models.fetch(str(tmp_path / "absent.gguf"), "v", tmp_path / "m")


def test_a_mistyped_relative_path_is_refused():
    with pytest.raises(ModelSourceError, match=r"model\.source = models/llama/7b"):
        models.version("models/llama/7b")


def test_an_unknown_kind_of_url_is_refused():
    with pytest.raises(ModelSourceError, match="foo"):
        models.version("foo://bucket/model")


def test_a_gguf_file_in_the_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "broken.gguf").write_bytes(b"not a GGUF file")
    assert models.version("~/broken.gguf")
    with pytest.raises(ModelSourceError, match="cannot be read as GGUF"):
        models.fetch("~/broken.gguf", "v", Path(tmp_path / "m"))


def test_a_token_with_a_line_break_is_refused_and_not_quoted(tmp_path):
    """The HTTP library quoted the whole header in its error, and the run was retried."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        results, printed = ask(endpoint, ["owner/good"], tmp_path, token=f"{TOKEN}\n")
    finally:
        server.shutdown()
        server.server_close()
    name, message = results["owner/good"]
    assert name == "ModelSourceError"
    assert "the token holds characters" in message
    # At level DEBUG, which the client of this test turns on, the HTTP library itself writes what it was given; tasks
    # never get that far, because settings.hub_token strips the token.
    shown = [line for line in printed.splitlines() if not line.startswith("DEBUG:httpcore2")]
    assert shown
    assert TOKEN not in "".join(shown) + message
