"""Loopback servers and ports for tests."""

import socket
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Self


def free_ports(count: int) -> list[int]:
    """Ports that are currently free."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a process listens on `port`."""
    deadline = monotonic() + 30
    while monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            continue
        return
    raise AssertionError("the server does not listen")


def wait_until(holds: Callable[[], bool]) -> None:
    """Ask again and again, for 30 seconds at most."""
    give_up = monotonic() + 30
    while not holds():
        assert monotonic() < give_up, "it does not come true"


class LoopbackServer(ThreadingHTTPServer):
    """A server in a thread of the test process, used as a context manager."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *args: object) -> None:
        """Print nothing: many tests disconnect or kill clients."""
