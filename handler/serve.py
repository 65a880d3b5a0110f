"""A local HTTP server that behaves like a Function URL in front of `lambda_handler`.

For trying the function with `curl` and for tests; it listens on loopback only. Every request
becomes a format 2.0 event, so what answers here is the very code that answers on Lambda.
"""

import base64
import json
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, perf_counter
from typing import Any
from urllib.parse import parse_qsl, unquote
from uuid import uuid4

from handler.app import lambda_handler
from handler.events import MAX_BODY_BYTES
from handler.settings import LOOPBACK

TIMEOUT_S = 900.0  # the longest that a function can run
IDLE_S = 30.0  # a connection that sends nothing for so long is closed
DRAIN_S = 5.0  # between two pieces of a body that nobody wants
GRACE_S = 10.0  # for requests under way when the server is told to stop
# Function URLs hand these over as text and every other body in base64 (AWS Lambda Developer Guide).
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/javascript")


class LocalContext:
    """What AWS's context object offers, as far as `lambda_handler` asks."""

    def __init__(self) -> None:
        self.aws_request_id = str(uuid4())
        self._end = monotonic() + TIMEOUT_S

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the function would be stopped."""
        return max(0, int(1000 * (self._end - monotonic())))


class Server(ThreadingHTTPServer):
    """A thread for every connection; counts the requests that are being answered."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, address: str = LOOPBACK) -> None:
        super().__init__((address, port), _Handler)
        self.busy = 0
        self.changed = threading.Condition()

    def drain(self) -> bool:
        """Wait for the requests under way, for `GRACE_S` at most; whether all were answered."""
        with self.changed:
            return self.changed.wait_for(lambda: not self.busy, GRACE_S)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S

    def _answer(self) -> None:
        server = self.server
        with server.changed:
            server.busy += 1
        try:
            self._invoke()
        except (ConnectionError, TimeoutError):  # the client went away
            self.close_connection = True
        finally:
            with server.changed:
                server.busy -= 1
                server.changed.notify_all()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer  # noqa: N815

    def _invoke(self) -> None:
        began = perf_counter()
        body = self._read_body()
        if body is None:
            return
        context = LocalContext()
        reply = lambda_handler(self._event(body, context), context)
        raw = reply["body"].encode()
        self.send_response(reply["statusCode"])
        for name, value in reply["headers"].items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)
        took = 1000 * (perf_counter() - began)
        path = ascii(self._target()[0])[1:-1]
        print(
            f"{self.command} {path} {reply['statusCode']} {took:.0f} ms",
            file=sys.stderr,
            flush=True,
        )

    def _read_body(self) -> bytes | None:
        """The request's body; None when an error has been sent instead."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers:
            problem = 411, "send a Content-Length instead of a transfer encoding"
        elif not (length.isascii() and length.isdigit()):
            problem = 400, "Content-Length is not a number"
        elif len(length) > 15 or int(length) > MAX_BODY_BYTES:
            problem = 413, f"the body is over the limit of {MAX_BODY_BYTES} bytes"
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                return body
            problem = 400, "the body is shorter than its Content-Length"
        self.close_connection = True  # what follows is no request
        self.send_error(*problem)
        if problem[0] == 413 and len(length) < 10:
            self._discard(int(length))
        return None

    def _discard(self, length: int) -> None:
        """Read a body of up to ten times the limit and forget it.

        A client that is still sending when the connection closes may never see the answer.
        """
        self.wfile.flush()
        self.connection.settimeout(DRAIN_S)
        left = min(length, 10 * MAX_BODY_BYTES)
        while left and (chunk := self.rfile.read(min(left, 1 << 16))):
            left -= len(chunk)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request, in the shape of every other error."""
        kind = {411: "LengthRequired", 413: "BodyTooLarge"}.get(code, "BadRequest")
        text = message or explain or "this is no HTTP request"
        body = json.dumps({"error": {"type": kind, "message": text, "param": None}}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _target(self) -> tuple[str, str]:
        """Path and query of the request, which may name a whole URL (RFC 9112, 3.2.2)."""
        path, _, query = self.path.partition("?")
        if not path.startswith("/"):
            path = "/" + path.partition("://")[2].partition("/")[2]
        return path, query

    def _event(self, body: bytes, context: LocalContext) -> dict[str, Any]:
        """The format 2.0 event that a Function URL makes of this request."""
        path, query = self._target()
        kind = self.headers.get("Content-Type", "")
        text = kind.lower().startswith(_TEXT_TYPES)
        event: dict[str, Any] = {
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": unquote(path),
            "rawQueryString": query,
            "headers": {k.lower(): v for k, v in self.headers.items()},
            "requestContext": {
                "domainName": "local.lambda-url.localhost",
                "http": {
                    "method": self.command,
                    "path": unquote(path),
                    "protocol": self.request_version,
                    "sourceIp": self.client_address[0],
                    "userAgent": self.headers.get("User-Agent", ""),
                },
                "requestId": context.aws_request_id,
                "stage": "$default",
            },
            "isBase64Encoded": False,
        }
        if query:
            event["queryStringParameters"] = dict(parse_qsl(query))
        if body:
            try:
                event["body"] = body.decode() if text else base64.b64encode(body).decode()
                event["isBase64Encoded"] = not text
            except UnicodeDecodeError:
                event |= {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}
        return event

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: `_invoke` writes the line, without query and body."""


def serve(port: int, address: str = LOOPBACK) -> int:
    """Answer until SIGINT or SIGTERM, finish what is under way; returns the exit code."""
    server = Server(port, address)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(
        f"listening on http://{address}:{server.server_port} (Ctrl-C stops)",
        file=sys.stderr,
        flush=True,
    )
    stop.wait()
    server.shutdown()
    clean = server.drain()
    server.server_close()
    print("stopped" if clean else "stopped with requests under way", file=sys.stderr, flush=True)
    return 0 if clean else 1
