"""A server for the page whose stream stays open after two tokens until the client disconnects."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from handler.page import page

TOKENS = (" there", " was")


class _Request(BaseHTTPRequestHandler):
    server: "HeldStream"

    def do_GET(self) -> None:
        text, headers = page()
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for text in TOKENS:
            self.wfile.write(f'data: {{"token": {{"id": 1, "text": "{text}"}}}}\n\n'.encode())
        self.connection.settimeout(60)
        if not self.connection.recv(1):
            self.server.disconnected.set()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class HeldStream(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.disconnected = threading.Event()
        """Set when a client has closed its stream."""
        self.url = f"http://127.0.0.1:{self.server_port}/"


@contextmanager
def held_stream() -> Iterator[HeldStream]:
    with HeldStream() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
