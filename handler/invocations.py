"""The invocations path of Lambda's emulator, for `docker run` without AWS.

    curl http://127.0.0.1:9000/2015-03-31/functions/function/invocations -d '{"prompt": "Once"}'

One event at a time, as a sandbox of Lambda takes them. What the handler raises is answered with
Lambda's error object and status 200, as the emulator does.
"""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from time import time
from typing import Any
from uuid import uuid4

from handler.runtime import Handler, answer
from handler.runtime_api import Invocation, error_body
from handler.settings import local_address

PATH = "/2015-03-31/functions/function/invocations"
MAX_BODY_BYTES = 6 * 1024 * 1024  # Lambda's limit for a buffered invoke
TIMEOUT_S = 900
IDLE_S = 30.0


class _Reply:
    """Takes the place of the Runtime API: keeps what an event was answered with."""

    body = b""
    content_type = "application/json"

    def respond(self, invocation: Invocation, body: bytes, content_type: str) -> None:  # noqa: ARG002
        """Keep a reply."""
        self.body, self.content_type = body, content_type

    def stream(self, invocation: Invocation, chunks: Any, content_type: str) -> None:
        """Collect a streamed reply, as the emulator does; a broken one leaves its error."""
        try:
            self.respond(invocation, b"".join(chunks), content_type)
        except Exception as error:
            self.body = error_body(str(error), type(error).__name__, invocation.request_id)
            raise

    def fail(self, invocation: Invocation, body: bytes, kind: str, xray_cause: str) -> None:  # noqa: ARG002
        """Keep an error."""
        self.body = body


class _Request(BaseHTTPRequestHandler):
    timeout = IDLE_S
    handler: Handler

    def do_POST(self) -> None:
        """Invoke the function with the body as its event."""
        length = self.headers.get("Content-Length", "")
        if self.path != PATH:
            self._send(404, _error("NotFound", f"POST to {PATH}"))
        elif not length.isdigit():
            self._send(411, _error("LengthRequired", "send a Content-Length"))
        elif int(length) > MAX_BODY_BYTES:
            left = min(int(length), 10 * MAX_BODY_BYTES)
            # A client that is still sending when the connection closes may never see the answer.
            while left and (piece := self.rfile.read(min(left, 1 << 16))):
                left -= len(piece)
            self._send(413, _error("RequestTooLarge", f"the limit is {MAX_BODY_BYTES} bytes"))
        else:
            headers = {"lambda-runtime-deadline-ms": str(int(1000 * (time() + TIMEOUT_S)))}
            reply = _Reply()
            invocation = Invocation(str(uuid4()), self.rfile.read(int(length)), headers)
            answer(reply, invocation, type(self).handler)
            self._send(200, reply.body, reply.content_type)

    def _send(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: the function logs what it has to say."""


def serve(handler: Handler, port: int, host: str | None = None) -> int:
    """Answer events until SIGINT or SIGTERM. Listens on `HOST`, loopback if that is not set."""
    request = type("_Request", (_Request,), {"handler": staticmethod(handler)})
    server = HTTPServer((host or local_address(os.environ), port), request)
    for number in (signal.SIGINT, signal.SIGTERM):
        # `shutdown` waits for the loop, which this very thread runs.
        signal.signal(
            number, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start()
        )
    address = f"http://{server.server_name}:{server.server_port}{PATH}"
    print(f"no Runtime API here: listening on {address}", file=sys.stderr, flush=True)
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    return 0


def _error(kind: str, message: str) -> bytes:
    return json.dumps({"errorType": kind, "errorMessage": message}).encode()
