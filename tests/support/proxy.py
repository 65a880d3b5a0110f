"""A proxy that logs requests and injects faults into responses.

    with FaultProxy("127.0.0.1:5000") as proxy:
        proxy.inject("GET", "model.safetensors", truncate(1000), times=2)

It buffers complete responses, which are small in tests.
"""

import http.client
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

from tests.support.ports import LoopbackServer

Headers = list[tuple[str, str]]


class Response(NamedTuple):
    status: int
    headers: Headers
    body: bytes


class Logged(NamedTuple):
    method: str
    path: str
    range: str | None
    authorization: str | None


Fault = Callable[["Handler", Response], None]


class FaultProxy(LoopbackServer):
    def __init__(self, upstream: str) -> None:
        super().__init__(Handler)
        self.upstream = upstream
        self.log: list[Logged] = []
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._faults: list[tuple[str, str, Fault, int]] = []
        self._kill: tuple[int, Callable[[], int]] | None = None
        self.sent = 0
        """Bytes of response bodies that were sent."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *error: object) -> None:
        self.over.set()
        super().__exit__(*error)

    def inject(self, method: str, part_of_path: str, fault: Fault, times: int = 1) -> None:
        """Inject `fault` into the responses to the next `times` matching requests."""
        self._faults.append((method, part_of_path, fault, times))

    def kill_after(self, count: int, pid: Callable[[], int]) -> None:
        """Kill a process with SIGKILL after sending `count` bytes of bodies; then send no more."""
        self._kill = count, pid

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for i, (wanted, part, fault, times) in enumerate(self._faults):
                if wanted == method and part in path and times:
                    self._faults[i] = (wanted, part, fault, times - 1)
                    return fault
        return None

    def allowance(self, count: int) -> tuple[int, int]:
        """How many of `count` bytes to send, and the process to kill afterwards, or 0."""
        with self._lock:
            if self._kill is None:
                self.sent += count
                return count, 0
            limit, pid = self._kill
            allowed = max(0, min(count, limit - self.sent))
            self.sent += allowed
            return (allowed, 0) if self.sent < limit else (allowed, pid())


class Handler(BaseHTTPRequestHandler):
    server: FaultProxy
    protocol_version = "HTTP/1.1"
    timeout = 60

    def handle_request(self) -> None:
        self.server.log.append(
            Logged(self.command, self.path, self.headers["Range"], self.headers["Authorization"])
        )
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        fault = self.server.fault_for(self.command, self.path)
        response = self.upstream(body, dict(self.headers.items()))
        (fault or forward)(self, response)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815

    def upstream(self, body: bytes, headers: dict[str, str]) -> Response:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, body or None, headers)
            reply = connection.getresponse()
            kept = [
                (k, v)
                for k, v in reply.getheaders()
                if k.lower() not in ("transfer-encoding", "connection", "date", "server")
            ]
            return Response(reply.status, kept, reply.read())
        finally:
            connection.close()

    def send(self, response: Response, body: bytes | None = None) -> None:
        """Send status and headers, and `body` instead of the complete body."""
        self.send_response(response.status)
        for name, value in response.headers:
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in response.headers):
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = response.body if body is None else body
        allowed, victim = self.server.allowance(len(sent))
        self.wfile.write(sent[:allowed])
        self.wfile.flush()
        if victim:
            os.kill(victim, signal.SIGKILL)
        if allowed < len(sent):
            self.server.over.wait(30)
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Write no log."""


def forward(handler: Handler, response: Response) -> None:
    handler.send(response)


def status(code: int, *headers: tuple[str, str]) -> Fault:
    """Respond with an error status and no body."""

    def fault(handler: Handler, response: Response) -> None:
        handler.send(Response(code, list(headers), b""))

    return fault


def truncate(count: int) -> Fault:
    """Close the connection after `count` bytes of the body."""

    def fault(handler: Handler, response: Response) -> None:
        handler.send(response, response.body[:count])
        handler.close_connection = True

    return fault


def reset(count: int) -> Fault:
    """Reset the connection after `count` bytes of the body."""

    def fault(handler: Handler, response: Response) -> None:
        handler.send(response, response.body[:count])
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.close_connection = True
        handler.connection.close()

    return fault


def stall(count: int) -> Fault:
    """Stop sending after `count` bytes of the body, without closing the connection."""

    def fault(handler: Handler, response: Response) -> None:
        handler.send(response, response.body[:count])
        handler.server.over.wait(60)
        handler.close_connection = True

    return fault


def corrupt(at: int) -> Fault:
    """Flip one bit of the body."""

    def fault(handler: Handler, response: Response) -> None:
        body = bytearray(response.body)
        body[at % len(body)] ^= 1
        handler.send(response, bytes(body))

    return fault


def ignore_range() -> Fault:
    """Ignore the request's range: send the complete file with status 200."""

    def fault(handler: Handler, response: Response) -> None:
        headers = {k: v for k, v in handler.headers.items() if k.lower() != "range"}
        whole = handler.upstream(b"", headers)
        kept = [(k, v) for k, v in whole.headers if k.lower() != "content-range"]
        handler.send(Response(200, kept, whole.body))

    return fault


def after(action: Callable[[], object]) -> Fault:
    """Run `action`, then send the request to the server."""

    def fault(handler: Handler, response: Response) -> None:
        action()
        handler.send(handler.upstream(b"", dict(handler.headers.items())))

    return fault
