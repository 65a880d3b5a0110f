"""The local HTTP server: a Function URL in front of the handler, and the path of Lambda's emulator.

For trying the function with `curl`, for tests, and for `docker run` without AWS:

    curl http://127.0.0.1:8080/generate -d '{"prompt": "Once"}'
    curl http://127.0.0.1:8080/2015-03-31/functions/function/invocations -d '{"prompt": "Once"}'

Every request but those for the invocations path becomes a format 2.0 event, so what answers here is
the very code that answers on Lambda.
"""

import base64
import json
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import perf_counter, time
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

from gpt2core.errors import GPT2Error
from handler import app
from handler.runtime.answer import Handler, answer
from handler.runtime.api import Invocation, error_body
from handler.settings import LOOPBACK
from handler.sources.http import HttpResponse, routes
from handler.sources.source import MAX_PAYLOAD_BYTES

INVOCATIONS = "/2015-03-31/functions/function/invocations"
TIMEOUT_S = 900  # the longest that a function can run
IDLE_S = 30.0  # a connection that sends nothing for so long is closed
DRAIN_S = 5.0  # between two pieces of a body that nobody wants
GRACE_S = 10.0  # for requests under way when the server is told to stop
MAX_LINE_BYTES = 1 << 16  # of a chunk's size, with its extensions, and of a trailer
# Function URLs hand these over as text and every other body in base64 (AWS Lambda Developer Guide).
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/javascript")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class LocalContext:
    """What AWS's context object offers, as far as the handler asks, and whether anybody waits.

    `takes_responses` says that a reply may be an `HttpResponse`, sent piece by piece.
    """

    takes_responses = True

    def __init__(self, connection: socket.socket) -> None:
        self.aws_request_id = str(uuid4())
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def is_cancelled(self) -> bool:
        """Whether the client has closed its side of the connection."""
        try:
            readable = self._poll.poll(0)
            return bool(readable) and not self._connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True


class Server(ThreadingHTTPServer):
    """A thread for every connection; counts the requests that are being answered."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, address: str = LOOPBACK, handler: Handler | None = None) -> None:
        super().__init__((address, port), _Request)
        self.handler: Handler = handler or app.lambda_handler
        self.sandbox = threading.Lock()
        """Held by the one invocation that the emulator's path takes at once."""
        self.busy = 0
        self.changed = threading.Condition()

    def drain(self) -> bool:
        """Wait for the requests under way, for `GRACE_S` at most; whether all were answered."""
        with self.changed:
            return self.changed.wait_for(lambda: not self.busy, GRACE_S)


class _Refused(Exception):
    """A request that is none; answered with `status`, and the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Request(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    disable_nagle_algorithm = True  # every event leaves as it is written

    def handle(self) -> None:
        """Answer the requests of one connection; a client may reset it between two of them."""
        with suppress(ConnectionError):
            super().handle()

    def __getattr__(self, name: str) -> Callable[[], None]:
        """Every method, also one that nobody has heard of, goes to the function: it is a 405."""
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        server = self.server
        with server.changed:
            server.busy += 1
        began = perf_counter()
        try:
            status = self._route()
            self._log(status, 1000 * (perf_counter() - began))
        except _Refused as refused:
            self.close_connection = True  # what follows is no request
            self.send_error(refused.status, str(refused))
            self._discard()
        except (ConnectionError, TimeoutError):  # the client went away
            self.close_connection = True
        finally:
            with server.changed:
                server.busy -= 1
                server.changed.notify_all()

    def _route(self) -> int:
        """Answer the request; returns the status."""
        body = self._read_body()
        return self._invoke(body) if self._target()[0] == INVOCATIONS else self._generate(body)

    def _generate(self, body: bytes) -> int:
        """As a Function URL."""
        context = LocalContext(self.connection)
        reply = self.server.handler(self._event(body, context), context)
        if isinstance(reply, HttpResponse):
            return self._stream(reply)
        if not (isinstance(reply, dict) and "statusCode" in reply):
            reply = {"statusCode": 200, "body": json.dumps(reply)}  # as a Function URL infers
        status: int = reply["statusCode"]
        headers = reply.get("headers", {"Content-Type": "application/json"})
        self._send(status, reply.get("body", "").encode(), headers)
        return status

    def _stream(self, response: HttpResponse) -> int:
        """Send every piece as it comes; a client that is gone ends the stream."""
        is_chunked = self.request_version >= "HTTP/1.1"
        try:
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            if is_chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.close_connection = True  # which tells where the body ends
            self.end_headers()
            try:
                for piece in response.chunks:
                    self._send_piece(piece.encode(), is_chunked)
            except GPT2Error:
                pass  # the last event says so
            if is_chunked:
                self.wfile.write(b"0\r\n\r\n")
        finally:
            response.close()
        return response.status

    def _send_piece(self, data: bytes, is_chunked: bool) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if is_chunked else data)

    def _invoke(self, event: bytes) -> int:
        """As the emulator: what the handler raises is an error object with status 200."""
        if self.command != "POST":
            error = error_body(f"POST to {INVOCATIONS}", "MethodNotAllowed")
            self._send(405, error, {"Content-Type": "application/json", "Allow": "POST"})
            return 405
        reply = _Reply()
        with self.server.sandbox:
            headers = {"lambda-runtime-deadline-ms": str(int(1000 * (time() + TIMEOUT_S)))}
            answer(reply, Invocation(str(uuid4()), event, headers), self.server.handler)
        self._send(200, reply.body, {"Content-Type": reply.content_type})
        return 200

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _read_body(self) -> bytes:
        """The request's body, whole.

        Raises:
            _Refused: it is too large, or not framed as HTTP wants it.
        """
        length = self.headers.get("Content-Length", "0")
        coding = self.headers.get("Transfer-Encoding")
        if coding is not None:
            if "Content-Length" in self.headers:
                raise _Refused(400, "send Content-Length or Transfer-Encoding, not both")
            if coding.strip().lower() != "chunked":
                raise _Refused(501, "the only transfer coding here is chunked")
            return self._read_chunks()
        if not (length.isascii() and length.isdigit()):
            raise _Refused(400, "Content-Length is not a number")
        if len(length) > 15 or int(length) > MAX_PAYLOAD_BYTES:
            raise _Refused(413, f"the body is over the limit of {MAX_PAYLOAD_BYTES} bytes")
        return self._exactly(int(length))

    def _read_chunks(self) -> bytes:
        """A chunked body (RFC 9112, 7.1); its extensions and trailers are left out."""
        body = b""
        while True:
            digits = self._line().partition(b";")[0].strip()
            if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
                raise _Refused(400, "a chunk does not begin with its size")
            size = int(digits, 16)
            if not size:
                break
            if len(body) + size > MAX_PAYLOAD_BYTES:
                raise _Refused(413, f"the body is over the limit of {MAX_PAYLOAD_BYTES} bytes")
            body += self._exactly(size)
            if self._line():
                raise _Refused(400, "a chunk is longer than its size")
        while self._line():
            pass
        return body

    def _exactly(self, count: int) -> bytes:
        data = self.rfile.read(count)
        if len(data) < count:
            raise _Refused(400, "the body ends too early")
        return data

    def _line(self) -> bytes:
        line = self.rfile.readline(MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise _Refused(400, "the body ends too early, or a line of it is too long")
        return line.rstrip(b"\r\n")

    def _discard(self) -> None:
        """Read on for up to ten times the limit, and forget it.

        A client that is still sending when the connection closes may never see the answer.
        """
        self.wfile.flush()
        self.connection.settimeout(DRAIN_S)
        length = self.headers.get("Content-Length", "")
        left = 10 * MAX_PAYLOAD_BYTES
        if length:
            left = min(int(length), left) if length.isdigit() and len(length) < 10 else 0
        try:
            while left and (piece := self.rfile.read1(min(left, 1 << 16))):
                left -= len(piece)
        except OSError:
            pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request, in the shape of every other error."""
        kind = "BodyTooLarge" if code == 413 else "BadRequest"
        text = message or explain or "this is no HTTP request"
        body = json.dumps({"error": {"type": kind, "message": text, "param": None}}).encode()
        self._send(code, body, {"Content-Type": "application/json", "Connection": "close"})

    def _target(self) -> tuple[str, str]:
        """Path and query of the request, which may name a whole URL (RFC 9112, 3.2.2)."""
        # Not `self.path`, of whose slashes at the beginning http.server leaves one.
        path, _, query = self.requestline.split()[1].partition("?")
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
            "rawPath": path,
            "rawQueryString": query,
            "headers": {},
            "requestContext": {
                "domainName": "local.lambda-url.localhost",
                "http": {
                    "method": self.command,
                    "path": path,
                    "protocol": self.request_version,
                    "sourceIp": self.client_address[0],
                    "userAgent": self.headers.get("User-Agent", ""),
                },
                "requestId": context.aws_request_id,
                "stage": "$default",
            },
            "isBase64Encoded": False,
        }
        for name, value in self.headers.items():
            _add(event["headers"], name.lower(), value)
        for name, value in parse_qsl(query, keep_blank_values=True):
            _add(event.setdefault("queryStringParameters", {}), name, value)
        if body:
            try:
                event["body"] = body.decode() if text else base64.b64encode(body).decode()
                event["isBase64Encoded"] = not text
            except UnicodeDecodeError:
                event |= {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}
        return event

    def _log(self, status: int, ms: float) -> None:
        """One line, with nothing in it that the client chose: only routes that there are."""
        path = self._target()[0]
        route = path if path == INVOCATIONS or path in routes() else "(no route)"
        method = self.command if self.command in _METHODS else "(no method)"
        print(f"{method} {route} {status} {ms:.0f} ms", file=sys.stderr, flush=True)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: `_log` writes the line."""


class _Reply:
    """Takes the place of the Runtime API: keeps what an event was answered with."""

    body = b""
    content_type = "application/json"

    def respond(self, invocation: Invocation, body: bytes, content_type: str) -> None:  # noqa: ARG002
        """Keep a reply."""
        self.body, self.content_type = body, content_type

    def stream(
        self, invocation: Invocation, chunks: Iterable[bytes], content_type: str
    ) -> Exception | None:
        """Collect a streamed reply, as the emulator does; a broken one leaves its error."""
        try:
            self.respond(invocation, b"".join(chunks), content_type)
        except Exception as error:  # noqa: BLE001 (returned)
            self.body = error_body(str(error), type(error).__name__, invocation.request_id)
            return error
        return None

    def fail(self, invocation: Invocation, body: bytes, kind: str, xray_cause: str) -> None:  # noqa: ARG002
        """Keep an error."""
        self.body = body


def serve(port: int, address: str = LOOPBACK, handler: Handler | None = None) -> int:
    """Answer until SIGINT or SIGTERM, finish what is under way; returns the exit code."""
    app.function.is_shared = True
    server = Server(port, address, handler)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(_welcome(address, server.server_port), file=sys.stderr, flush=True)
    stop.wait()
    server.shutdown()
    clean = server.drain()
    server.server_close()
    print("stopped" if clean else "stopped with requests under way", file=sys.stderr, flush=True)
    return 0 if clean else 1


def _welcome(address: str, port: int) -> str:
    """Where the server listens, where its page is, and a first request."""
    host = "127.0.0.1" if address in ("", "0.0.0.0") else address  # noqa: S104 (no binding)
    key = ' -H "authorization: Bearer $GPT2_API_KEY"' if app.function.settings.api_key else ""
    body = '{"prompt": "The old woman said", "max_new_tokens": 12}'
    return (
        f"listening on http://{address}:{port} (Ctrl-C stops)\n"
        f"page:    http://{host}:{port}/\n"
        f"request: curl http://{host}:{port}/generate{key} -d '{body}'"
    )


def _add(fields: dict[str, str], name: str, value: str) -> None:
    """Function URLs join values of one name by commas."""
    fields[name] = f"{fields[name]},{value}" if name in fields else value
