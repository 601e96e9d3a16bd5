"""A web server on loopback for tests, which gives the files of a folder and knows nothing of parts."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Keep the test's output clean."""

    def copyfile(self, source, outputfile):
        """Send a file, and count what the client took of it."""
        while chunk := source.read(1 << 16):
            outputfile.write(chunk)
            self.server.sent += len(chunk)

    def do_HEAD(self):
        """A signed URL is signed for one way of asking."""
        if "Signature" in self.path:
            self.send_error(403)
        else:
            super().do_HEAD()


@contextmanager
def web(folder: Path) -> Iterator[tuple[str, ThreadingHTTPServer]]:
    """The address of a server of a folder, and the server, whose `sent` counts bytes of files."""
    with serving(functools.partial(_Quiet, directory=str(folder))) as (address, server):
        server.sent = 0
        yield address, server


@contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[tuple[str, ThreadingHTTPServer]]:
    """The address of a server on loopback, and the server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *_: None  # clients that have read enough hang up
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server
        finally:
            server.shutdown()
