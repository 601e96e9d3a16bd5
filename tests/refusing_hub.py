"""A hub on this machine that takes nothing: what a run meets that may not push what it made."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RefusingHub(BaseHTTPRequestHandler):
    """Lets a token write where it is asked before training, and no longer when something is pushed."""

    def do_GET(self):
        self.answer(200 if "/auth-check/" in self.path else 404)  # the repository is not there yet

    def do_POST(self):
        self.answer(403)

    def answer(self, status):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args):
        """Keep the test's output clean."""


@contextmanager
def refusing_hub() -> Iterator[str]:
    """The address of a hub that takes nothing."""
    with ThreadingHTTPServer(("127.0.0.1", 0), RefusingHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
