"""A fake Docker API for `sam build`: it builds nothing and records the requests.

Source: Docker Engine API, "System" and "Image: build".
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

BUILT = b'{"stream": "Successfully built 0123456789ab"}\n'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        ping = self.path.endswith("/_ping")
        self._answer(b"OK" if ping else json.dumps({"ApiVersion": "1.44", "Os": "linux"}).encode())

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._skip_body()
        url = urlsplit(self.path)
        if url.path.endswith("/build"):
            parameters = {name: values[0] for name, values in parse_qs(url.query).items()}
            self.server.builds.append(parameters)  # type: ignore[attr-defined]
        self._answer(BUILT)

    def _skip_body(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        else:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Api-Version", "1.44")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Write no log."""


@contextmanager
def docker_api() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yields the address for DOCKER_HOST, and the parameters of each build."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    builds: list[dict[str, str]] = []
    server.builds = builds  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{server.server_port}", builds
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
