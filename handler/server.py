"""The local HTTP server: behaves like a Function URL, and like Lambda's emulator at its path.

For `curl`, tests, and `docker run` without AWS:

    curl http://127.0.0.1:8080/generate -d '{"prompt": "Once"}'
    curl http://127.0.0.1:8080/2015-03-31/functions/function/invocations -d '{"prompt": "Once"}'

Every other request becomes an event with payload format 2.0 for the handler, as on Lambda.
"""

import base64
import json
import os
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
from handler.errors import Cancelled
from handler.request_body import MalformedRequest, read_body
from handler.runtime.answer import Handler, answer
from handler.runtime.api import Invocation, error_body
from handler.settings import LOOPBACK, local_host, local_port
from handler.sources.http import HttpResponse, routes
from handler.sources.source import MAX_PAYLOAD_BYTES

INVOCATIONS = "/2015-03-31/functions/function/invocations"
TIMEOUT_S = 900  # Lambda's maximum function timeout
IDLE_S = 30.0  # after which an idle connection is closed
DISCARD_TIMEOUT_S = 5.0  # between two chunks of a body that is discarded
CLIENT_CLOSED_REQUEST = 499  # nginx's status code, for the log
GRACE_S = 10.0  # for active requests when the server stops
# Function URLs pass these as text and other bodies in base64 (AWS Lambda Developer Guide).
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/javascript")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class LocalContext:
    """The part of Lambda's context object that the handler uses, and the state of the connection.

    `accepts_responses` means that the reply may be an `HttpResponse`, sent chunk by chunk.
    """

    accepts_responses = True

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
    """A server with a thread for each connection; counts the active requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, address: str = LOOPBACK, handler: Handler | None = None) -> None:
        super().__init__((address, port), _Request)
        self.handler: Handler = handler or app.lambda_handler
        self.emulator_lock = threading.Lock()
        """The emulator runs one invocation at a time."""
        self.active_requests = 0
        self.changed = threading.Condition()

    def drain(self) -> bool:
        """Wait up to `GRACE_S` for active requests; returns whether all have finished."""
        with self.changed:
            return self.changed.wait_for(lambda: not self.active_requests, GRACE_S)


class _Request(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    disable_nagle_algorithm = True  # send every server-sent event at once

    def handle(self) -> None:
        """Handle the requests of one connection; a client may reset it between two of them."""
        with suppress(ConnectionError):
            super().handle()

    def __getattr__(self, name: str) -> Callable[[], None]:
        """Pass every method to the function, which replies 405 to unknown ones."""
        if name.startswith("do_"):
            return self._handle
        raise AttributeError(name)

    def _handle(self) -> None:
        server = self.server
        with server.changed:
            server.active_requests += 1
        began = perf_counter()
        try:
            try:
                status = self._route()
            except (ConnectionError, TimeoutError):  # the client has disconnected
                self.close_connection = True
                status = CLIENT_CLOSED_REQUEST
            self._log(status, 1000 * (perf_counter() - began))
        except MalformedRequest as error:
            self.close_connection = True  # the next request cannot be located
            self.send_error(error.status, str(error))
            self._discard()
        finally:
            with server.changed:
                server.active_requests -= 1
                server.changed.notify_all()

    def _route(self) -> int:
        """Reply to the request; returns the status."""
        body = read_body(self.headers, self.rfile)
        return self._emulate(body) if self._target()[0] == INVOCATIONS else self._invoke(body)

    def _invoke(self, body: bytes) -> int:
        """Invoke the function as a Function URL does; returns the status."""
        context = LocalContext(self.connection)
        reply = self.server.handler(self._event(body, context), context)
        if isinstance(reply, HttpResponse):
            return self._stream(reply)
        if not (isinstance(reply, dict) and "statusCode" in reply):
            reply = {"statusCode": 200, "body": json.dumps(reply)}  # as Function URLs infer it
        status: int = reply["statusCode"]
        headers = reply.get("headers", {"Content-Type": "application/json"})
        self._send(status, reply.get("body", "").encode(), headers)
        return status

    def _stream(self, response: HttpResponse) -> int:
        """Send each chunk as it is generated, until the client disconnects."""
        is_chunked = self.request_version >= "HTTP/1.1"
        try:
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            if is_chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.close_connection = True  # marks the end of the body
            self.end_headers()
            try:
                for chunk in response.chunks:
                    data = chunk.encode()
                    framed = b"%x\r\n%b\r\n" % (len(data), data)
                    self.wfile.write(framed if is_chunked else data)
            except Cancelled:
                raise ConnectionAbortedError from None
            except GPT2Error:
                pass  # the last event contains the error
            if is_chunked:
                self.wfile.write(b"0\r\n\r\n")
        finally:
            response.close()
        return response.status

    def _emulate(self, event: bytes) -> int:
        """Invoke the function as the emulator does: an error object also has status 200."""
        if self.command != "POST":
            error = error_body(f"{INVOCATIONS} accepts only POST", "MethodNotAllowed")
            self._send(405, error, {"Content-Type": "application/json", "Allow": "POST"})
            return 405
        reply = _Reply()
        with self.server.emulator_lock:
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

    def _discard(self) -> None:
        """Read and discard the rest of the body, up to ten times the size limit.

        A client that is still sending when the connection is reset may not receive the reply.
        """
        self.wfile.flush()
        self.connection.settimeout(DISCARD_TIMEOUT_S)
        length = self.headers.get("Content-Length", "")
        left = 10 * MAX_PAYLOAD_BYTES
        if length:
            left = min(int(length), left) if length.isdigit() and len(length) < 10 else 0
        try:
            while left and (data := self.rfile.read1(min(left, 1 << 16))):
                left -= len(data)
        except OSError:
            pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Reply to a malformed request with an error object instead of http.server's page."""
        kind = "BodyTooLarge" if code == 413 else "BadRequest"
        text = message or explain or "this is not an HTTP request"
        body = json.dumps({"error": {"type": kind, "message": text, "param": None}}).encode()
        self._send(code, body, {"Content-Type": "application/json", "Connection": "close"})

    def _target(self) -> tuple[str, str]:
        """Path and query of the request target, which may be a URL (RFC 9112, 3.2.2)."""
        # Not `self.path`: http.server merges its leading slashes.
        path, _, query = self.requestline.split()[1].partition("?")
        if not path.startswith("/"):
            path = "/" + path.partition("://")[2].partition("/")[2]
        return path, query

    def _event(self, body: bytes, context: LocalContext) -> dict[str, Any]:
        """The event that a Function URL creates from this request, payload format 2.0."""
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
        """Write a log line. It contains only known routes and methods, no input of the client."""
        path = self._target()[0]
        route = path if path == INVOCATIONS or path in routes() else "(no route)"
        method = self.command if self.command in _METHODS else "(no method)"
        print(f"{method} {route} {status} {ms:.0f} ms", file=sys.stderr, flush=True)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Disable http.server's log; see `_log`."""


class _Reply:
    """Replaces the Runtime API: stores the reply to one event."""

    body = b""
    content_type = "application/json"

    def respond(self, invocation: Invocation, body: bytes, content_type: str) -> None:  # noqa: ARG002
        """Store a reply."""
        self.body, self.content_type = body, content_type

    def stream(
        self, invocation: Invocation, chunks: Iterable[bytes], content_type: str
    ) -> Exception | None:
        """Store a buffered stream, as the emulator does; its error if it fails."""
        try:
            self.respond(invocation, b"".join(chunks), content_type)
        except Exception as error:  # noqa: BLE001 (returned)
            self.body = error_body(str(error), type(error).__name__, invocation.request_id)
            return error
        return None

    def fail(self, invocation: Invocation, body: bytes, kind: str, xray_cause: str) -> None:  # noqa: ARG002
        """Store an error."""
        self.body = body


def main(handler: Handler | None = None, port: int | None = None) -> int:
    """Serve on `HOST` and `PORT`, or on `port`; returns the exit code.

    Raises:
        SettingsError: `PORT` is not a port number.
    """
    address = local_host(os.environ)
    port = local_port(os.environ) if port is None else port
    try:
        return serve(port, address, handler)
    except OSError as error:
        problem = f"cannot listen on {address}:{port}: {error.strerror}"
        print(f"error: {problem}: choose another port or HOST", file=sys.stderr)
        return 1


def serve(port: int, address: str = LOOPBACK, handler: Handler | None = None) -> int:
    """Serve until SIGINT or SIGTERM, then finish active requests; returns the exit code."""
    app.function.is_concurrent = True
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
    print("stopped" if clean else "stopped with requests in progress", file=sys.stderr, flush=True)
    return 0 if clean else 1


def _welcome(address: str, port: int) -> str:
    """The addresses of the server and its page, and an example request."""
    host = "127.0.0.1" if address in ("", "0.0.0.0") else address  # noqa: S104 (no binding)
    key = ' -H "authorization: Bearer $GPT2_API_KEY"' if app.function.settings.api_key else ""
    body = '{"prompt": "The old woman said", "max_new_tokens": 12}'
    return (
        f"listening on http://{address}:{port} (Ctrl-C stops)\n"
        f"page:    http://{host}:{port}/\n"
        f"request: curl http://{host}:{port}/generate{key} -d '{body}'"
    )


def _add(fields: dict[str, str], name: str, value: str) -> None:
    """Add a value; Function URLs join the values of one name with commas."""
    fields[name] = f"{fields[name]},{value}" if name in fields else value
