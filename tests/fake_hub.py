"""A hub on this machine: models, datasets and accounts, and every way in which the real one refuses."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from conftest import chat_rows

TOKEN = "hf_PlantedTokenThatMustNeverBeShown"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
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


@contextmanager
def fake_hub(files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub whose model owner/good has some files, and what it was asked."""
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        server.seen, server.files = [], files
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server.seen
        finally:
            server.shutdown()
