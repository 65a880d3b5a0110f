"""A client of the Lambda Runtime API with a short import time.

Uses one HTTP/1.1 keep-alive connection on the interpreter's `_socket`, because `http.client` takes
30 ms to import. Source: AWS Lambda Developer Guide, "Using the Lambda runtime API" and "Lambda
response streaming: custom runtimes".
"""

import _socket
from collections.abc import Generator, Iterable, Mapping

from gpt2core.startup.slim_typing import NamedTuple

VERSION = "/2018-06-01/runtime"
MAX_HEADER_BYTES = 1 << 20
XRAY_CAUSE_LIMIT = 1 << 20
_RECEIVE_BYTES = 1 << 16
Headers = Mapping[str, str]


class RuntimeApiError(Exception):
    """The Runtime API is not reachable, or sent an unexpected response."""


class Invocation(NamedTuple):
    """One event with its headers, whose names are in lower case."""

    request_id: str
    body: bytes
    headers: Headers


class Streamed(NamedTuple):
    """A streamed reply, returned by the handler."""

    chunks: Iterable[bytes]
    content_type: str = "application/octet-stream"


class RuntimeApi:
    """The endpoint at `AWS_LAMBDA_RUNTIME_API`."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise RuntimeApiError(f"AWS_LAMBDA_RUNTIME_API is {address!r}, not host:port")
        self.address = self._host = address
        self._address = host, int(port)
        self._socket: _socket.socket | None = None
        self._received = b""

    def next(self) -> Invocation:
        """Wait for the next event, without a timeout."""
        status, headers, body = self._request("GET", "/invocation/next")
        request_id = headers.get("lambda-runtime-aws-request-id")
        if status != 200 or not request_id:
            raise RuntimeApiError(f"GET /invocation/next returned status {status}")
        return Invocation(request_id, body, headers)

    def respond(self, invocation: Invocation, body: bytes, content_type: str) -> None:
        """Send the reply to an event."""
        headers = {"Content-Type": content_type, **_echoed(invocation)}
        self._post(f"/invocation/{invocation.request_id}/response", body, headers)

    def stream(
        self, invocation: Invocation, chunks: Iterable[bytes], content_type: str
    ) -> Exception | None:
        """Stream the reply to an event.

        An exception raised by `chunks` is sent as the stream's trailer, and returned.

        Raises:
            RuntimeApiError: a piece could not be sent; `chunks` is closed.
        """
        headers = {
            "Content-Type": content_type,
            "Lambda-Runtime-Function-Response-Mode": "streaming",
            "Transfer-Encoding": "chunked",
            "Trailer": "Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body",
            **_echoed(invocation),
        }
        self._disconnect()  # use a new connection, because a stream cannot be retried
        pieces = _pieces(chunks)
        try:
            path = f"/invocation/{invocation.request_id}/response"
            self._send(_head("POST", path, self._host, headers))
            failure: Exception | None = None
            for piece in pieces:
                if isinstance(piece, Exception):
                    failure = piece
                    self._send(b"0\r\n" + _trailer(piece) + b"\r\n")
                else:
                    self._send(piece)
            status = self._receive()[0]
        except (OSError, RuntimeApiError) as error:
            self._disconnect()
            raise RuntimeApiError(f"the streamed reply could not be sent ({error})") from error
        finally:
            pieces.close()
            close = getattr(chunks, "close", None)
            if close:  # even if nothing was sent
                close()
        _accepted(status)
        return failure

    def fail(self, invocation: Invocation, body: bytes, kind: str, xray_cause: str) -> None:
        """Report the error of an event."""
        headers = _error_headers(kind) | _echoed(invocation)
        if len(xray_cause) < XRAY_CAUSE_LIMIT:
            headers["Lambda-Runtime-Function-XRay-Error-Cause"] = xray_cause
        self._post(f"/invocation/{invocation.request_id}/error", body, headers)

    def fail_init(self, body: bytes, kind: str) -> None:
        """Report that the function could not be initialized."""
        self._post("/init/error", body, _error_headers(kind))

    def wait_for_restore(self) -> None:
        """Signal that the snapshot can be taken; returns in a process restored from it."""
        status, _, _ = self._request("GET", "/restore/next")
        if status != 200:
            raise RuntimeApiError(f"GET /restore/next returned status {status}")

    def fail_restore(self, body: bytes, kind: str) -> None:
        """Report that a restore hook failed."""
        self._post("/restore/error", body, _error_headers(kind))

    def _post(self, path: str, body: bytes, headers: Headers) -> None:
        _accepted(self._request("POST", path, body, headers)[0])

    def _request(
        self, method: str, path: str, body: bytes = b"", headers: Headers | None = None
    ) -> tuple[int, Headers, bytes]:
        fields = dict(headers or {})
        if method == "POST":
            fields["Content-Length"] = str(len(body))
        head = _head(method, path, self._host, fields)
        for fresh in (self._socket is None, True):
            try:
                self._send(head + body)
                return self._receive()
            except (OSError, RuntimeApiError) as error:
                self._disconnect()
                if fresh:  # otherwise the kept connection may have been closed: retry once
                    raise RuntimeApiError(f"{method} {path} failed ({error})") from error
        raise AssertionError("the second attempt returns or raises")

    def _send(self, data: bytes) -> None:
        if self._socket is None:
            self._socket = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
            self._socket.connect(self._address)
            self._socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self._socket.sendall(data)

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._received = None, b""

    def _receive(self) -> tuple[int, Headers, bytes]:
        head = self._until(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        try:
            status = int(lines[0].split(" ")[1])
            if headers.get("transfer-encoding", "").lower() == "chunked":
                body = self._chunks()
            else:
                body = self._exactly(int(headers.get("content-length", "0")))
        except (ValueError, IndexError):
            raise RuntimeApiError(f"{lines[0][:40]!a} is not an HTTP response") from None
        if headers.get("connection", "").lower() == "close":
            self._disconnect()
        return status, headers, body

    def _chunks(self) -> bytes:
        chunks = []
        while size := int(self._until(b"\r\n").split(b";")[0], 16):
            chunks.append(self._exactly(size))
            self._exactly(2)
        while self._until(b"\r\n"):  # trailers
            continue
        return b"".join(chunks)

    def _until(self, mark: bytes) -> bytes:
        while (at := self._received.find(mark)) < 0:
            if len(self._received) > MAX_HEADER_BYTES:
                raise RuntimeApiError(f"the response header exceeds {MAX_HEADER_BYTES} bytes")
            self._received += self._more()
        found, self._received = self._received[:at], self._received[at + len(mark) :]
        return found

    def _exactly(self, count: int) -> bytes:
        pieces = [self._received]
        missing = count - len(self._received)
        while missing > 0:
            pieces.append(self._more())
            missing -= len(pieces[-1])
        whole = b"".join(pieces)
        self._received = whole[count:]
        return whole[:count]

    def _more(self) -> bytes:
        assert self._socket is not None  # something has been sent
        data = self._socket.recv(_RECEIVE_BYTES)
        if not data:
            raise RuntimeApiError("the connection was closed")
        return data


def error_body(
    message: str, kind: str, request_id: str = "", stack: list[str] | None = None
) -> bytes:
    """The error object that Lambda returns to the caller."""
    import json

    fields = {
        "errorMessage": message,
        "errorType": kind,
        "requestId": request_id,
        "stackTrace": stack or [],
    }
    return json.dumps(fields).encode()


def _pieces(chunks: Iterable[bytes]) -> Generator[bytes | Exception, None, None]:
    """The chunks in chunked transfer encoding, and its end or the exception that `chunks` raised.

    This separates exceptions of `chunks` from those of sending.
    """
    try:
        for chunk in chunks:
            if chunk:  # an empty chunk would end the stream
                yield b"%x\r\n%b\r\n" % (len(chunk), chunk)
    except Exception as error:  # noqa: BLE001 (sent in the trailer)
        yield error
    else:
        yield b"0\r\n\r\n"


def _trailer(error: Exception) -> bytes:
    from base64 import b64encode

    kind = type(error).__name__
    body = b64encode(error_body(str(error), kind)).decode()
    return (
        f"Lambda-Runtime-Function-Error-Type: {kind}\r\n"
        f"Lambda-Runtime-Function-Error-Body: {body}\r\n"
    ).encode()


def _accepted(status: int) -> None:
    # 4xx: there was already a reply, the invocation has timed out, or the reply is too large. The
    # service has reported this to the caller, and the runtime can continue with the next event.
    if status >= 500:
        raise RuntimeApiError(f"the Runtime API returned status {status} for a reply")


def _head(method: str, path: str, host: str, headers: Headers) -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {VERSION}{path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode(
        "latin-1", "replace"
    )


def _error_headers(kind: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Lambda-Runtime-Function-Error-Type": kind}


def _echoed(invocation: Invocation) -> dict[str, str]:
    """The header that identifies the delivery of an event, if the service sent it."""
    invocation_id = invocation.headers.get("lambda-runtime-invocation-id")
    return {"Lambda-Runtime-Invocation-Id": invocation_id} if invocation_id else {}
