"""A proxy between a real client and a real server that logs every request and spoils some answers.

    with FaultProxy("127.0.0.1:5000") as proxy:
        proxy.spoil("GET", "model.safetensors", truncate(1000), times=2)

It reads a whole answer before it passes it on, which is right for the small files of tests.
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


class Answer(NamedTuple):
    status: int
    headers: Headers
    body: bytes


class Logged(NamedTuple):
    method: str
    path: str
    range: str | None
    authorization: str | None


Fault = Callable[["Handler", Answer], None]


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
        """Bytes of bodies passed on."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *error: object) -> None:
        self.over.set()
        super().__exit__(*error)

    def spoil(self, method: str, part_of_path: str, fault: Fault, times: int = 1) -> None:
        """Answer the next `times` requests of this kind with `fault`."""
        self._faults.append((method, part_of_path, fault, times))

    def kill_after(self, count: int, pid: Callable[[], int]) -> None:
        """SIGKILL a process when `count` bytes of bodies have been sent, and send no more."""
        self._kill = count, pid

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for i, (wanted, part, fault, times) in enumerate(self._faults):
                if wanted == method and part in path and times:
                    self._faults[i] = (wanted, part, fault, times - 1)
                    return fault
        return None

    def allowance(self, count: int) -> tuple[int, int]:
        """How many of `count` bytes may be sent, and whom to kill then; 0 for nobody."""
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

    def answer(self) -> None:
        self.server.log.append(
            Logged(self.command, self.path, self.headers["Range"], self.headers["Authorization"])
        )
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        fault = self.server.fault_for(self.command, self.path)
        answer = self.upstream(body, dict(self.headers.items()))
        (fault or pass_on)(self, answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def upstream(self, body: bytes, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, body or None, headers)
            reply = connection.getresponse()
            kept = [
                (k, v)
                for k, v in reply.getheaders()
                if k.lower() not in ("transfer-encoding", "connection", "date", "server")
            ]
            return Answer(reply.status, kept, reply.read())
        finally:
            connection.close()

    def send(self, answer: Answer, body: bytes | None = None) -> None:
        """Status and headers as they are, and `body` in place of the whole."""
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in answer.headers):
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = answer.body if body is None else body
        allowed, victim = self.server.allowance(len(sent))
        self.wfile.write(sent[:allowed])
        self.wfile.flush()
        if victim:
            os.kill(victim, signal.SIGKILL)
        if allowed < len(sent):
            self.server.over.wait(30)
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""


def pass_on(handler: Handler, answer: Answer) -> None:
    handler.send(answer)


def status(code: int, *headers: tuple[str, str]) -> Fault:
    """An error without a body."""

    def fault(handler: Handler, answer: Answer) -> None:
        handler.send(Answer(code, list(headers), b""))

    return fault


def truncate(count: int) -> Fault:
    """The connection closes after `count` bytes of the body."""

    def fault(handler: Handler, answer: Answer) -> None:
        handler.send(answer, answer.body[:count])
        handler.close_connection = True

    return fault


def reset(count: int) -> Fault:
    """The connection is reset after `count` bytes of the body."""

    def fault(handler: Handler, answer: Answer) -> None:
        handler.send(answer, answer.body[:count])
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.close_connection = True
        handler.connection.close()

    return fault


def stall(count: int) -> Fault:
    """After `count` bytes of the body nothing more comes, and the connection stays open."""

    def fault(handler: Handler, answer: Answer) -> None:
        handler.send(answer, answer.body[:count])
        handler.server.over.wait(60)
        handler.close_connection = True

    return fault


def corrupt(at: int) -> Fault:
    """One bit of the body is wrong; the length is right."""

    def fault(handler: Handler, answer: Answer) -> None:
        body = bytearray(answer.body)
        body[at % len(body)] ^= 1
        handler.send(answer, bytes(body))

    return fault


def ignore_range() -> Fault:
    """The whole file with status 200, whatever range was asked for."""

    def fault(handler: Handler, answer: Answer) -> None:
        headers = {k: v for k, v in handler.headers.items() if k.lower() != "range"}
        whole = handler.upstream(b"", headers)
        kept = [(k, v) for k, v in whole.headers if k.lower() != "content-range"]
        handler.send(Answer(200, kept, whole.body))

    return fault


def first(action: Callable[[], object]) -> Fault:
    """`action` happens before the server is asked."""

    def fault(handler: Handler, answer: Answer) -> None:
        action()
        handler.send(handler.upstream(b"", dict(handler.headers.items())))

    return fault
