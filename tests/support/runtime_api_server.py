"""A Lambda Runtime API for tests: sends events, and records replies with their trailers.

Unlike AWS's emulator, it supports trace ids, invocation ids, SnapStart's restore calls and trailers
of streamed replies. Source: AWS Lambda Developer Guide, "Using the Lambda runtime API", "Lambda
response streaming: custom runtimes".
"""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from time import time
from typing import NamedTuple

from tests.conftest import ROOT
from tests.support.ports import LoopbackServer

ARN = "arn:aws:lambda:eu-central-1:123456789012:function:gpt2"
TRACE_ID = "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1"


class Reply(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes
    trailers: dict[str, str]


class RuntimeApiServer(LoopbackServer):
    def __init__(self) -> None:
        super().__init__(Handler)
        self.events: queue.Queue[tuple[bytes, dict[str, str]] | None] = queue.Queue()
        self.replies: queue.Queue[Reply] = queue.Queue()
        self.restored = threading.Event()
        self.drop_connections = False
        self.failing_replies = 0
        """How many of the next replies receive status 500."""
        self._count = 0

    def __exit__(self, *error: object) -> None:
        self.events.put(None)
        super().__exit__(*error)

    def invoke(self, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """Send an event to the runtime and wait for its reply."""
        self.send(body, headers)
        return self.replies.get(timeout=30)

    def send(self, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send an event to the runtime."""
        self._count += 1
        fields = {
            "Lambda-Runtime-Aws-Request-Id": f"request-{self._count}",
            "Lambda-Runtime-Deadline-Ms": str(int(1000 * (time() + 30))),
            "Lambda-Runtime-Invoked-Function-Arn": ARN,
            "Content-Type": "application/json",
            **(headers or {}),
        }
        self.events.put((body, fields))


class Handler(BaseHTTPRequestHandler):
    server: RuntimeApiServer
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # headers and body in one packet

    def do_GET(self) -> None:
        if self.path == "/2018-06-01/runtime/restore/next":
            self.server.restored.set()
            self.reply(200, b"", {})
            return
        event = self.server.events.get()
        if event is None:
            self.close_connection = True
            return
        self.reply(200, *event)

    def do_POST(self) -> None:
        trailers: dict[str, str] = {}
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while line := self.rfile.readline().strip():
                name, _, value = line.decode().partition(":")
                trailers[name] = value.strip()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.replies.put(Reply(self.path, headers, body, trailers))
        if self.server.drop_connections:
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()  # closed afterwards, without Connection: close
            self.close_connection = True
            return
        if self.server.failing_replies:
            self.server.failing_replies -= 1
            self.reply(500, b"{}", {})
            return
        self.reply(202, b'{"status":"OK"}', {})

    def reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Write no log."""


OURS = ("-m", "handler.runtime")
THEIRS = ("-m", "awslambdaric")


@contextmanager
def runtime(
    server: RuntimeApiServer, module: tuple[str, ...], handler: str, **environ: str
) -> Iterator["subprocess.Popen[str]"]:
    """Run a runtime that processes the events of `server`."""
    process = subprocess.Popen(
        [sys.executable, *module, handler],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "AWS_LAMBDA_RUNTIME_API": server.address,
            "AWS_LAMBDA_FUNCTION_NAME": "gpt2",
            "AWS_LAMBDA_FUNCTION_VERSION": "7",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
            "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/gpt2",
            "AWS_LAMBDA_LOG_STREAM_NAME": "2026/11/22/[7]abc",
            **environ,
        },
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
