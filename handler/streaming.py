"""Streamed replies: their events, and their framing for Lambda's runtime.

Source of the frames: AWS Lambda Developer Guide, "Response streaming for Lambda functions", and
"Using a Lambda function with response streaming: custom runtimes".
"""

import json
from collections.abc import Callable, Generator, Iterator
from itertools import chain

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.dialects.request import Request
from handler.errors import Cancelled, InternalError, status_of

if TYPE_CHECKING:
    from handler.completions import Piece
    from handler.dialects.request import EventStream
    from handler.runtime.api import Streamed
    from handler.sources.http import HttpResponse
    from handler.telemetry import Report

FRAMED_TYPE = "application/vnd.awslambda.http-integration-response"
_SEPARATOR = bytes(8)  # between the prelude and the body


def start(
    request: Request,
    pieces: "Generator[Piece, None, None]",
    report: "Callable[[], Report]",
    finish: Callable[[BaseException | None], None],
) -> "EventStream":
    """Return a request's event stream once its first event is ready.

    A later error becomes the last event. `finish` is called once, with that error or None, when the
    stream ends or is closed.

    Raises:
        Exception: the request failed before its first event. `finish` is not called.
    """
    events = request.dialect.events(request, pieces, report)
    stream = _Stream(request, chain([next(events)], events), pieces, finish)
    return request.dialect.stream_class(stream, stream.close)


def buffered(
    request: Request, pieces: "Iterator[Piece]", report: "Callable[[], Report]"
) -> "EventStream":
    """Return the complete event stream of a request, for a source that buffers.

    Raises:
        Exception: the request failed.
    """
    return request.dialect.stream_class(list(request.dialect.events(request, pieces, report)))


class _Stream:
    """The events of a started stream. Ends once: exhausted, failed or closed."""

    def __init__(
        self,
        request: Request,
        events: Iterator[Any],
        pieces: "Generator[Piece, None, None]",
        finish: Callable[[BaseException | None], None],
    ) -> None:
        self._request = request
        self._events = events
        self._pieces = pieces
        self._finish: Callable[[BaseException | None], None] | None = finish
        self._failure: GPT2Error | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._finish is None:
            if (
                self._failure is not None
            ):  # sent as an event; the runtime adds error trailers, the server logs 499
                failure, self._failure = self._failure, None
                raise failure
            raise StopIteration
        try:
            return next(self._events)
        except StopIteration:
            self.close()
            raise
        except Exception as error:  # noqa: BLE001 (sent as an event, and logged)
            self._end(error)
            failure = (
                error
                if isinstance(error, GPT2Error)
                else InternalError("internal error; see the function log")
            )
            if status_of(failure) >= 500 or isinstance(failure, Cancelled):
                self._failure = failure
            return self._request.dialect.error_event(failure)

    def close(self) -> None:
        """End the stream and cancel the running sequences."""
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        finish, self._finish = self._finish, None
        if finish:
            self._pieces.close()
            finish(error)


def framed(response: "HttpResponse") -> "Streamed":
    """A response in the framing of Lambda's runtime for Function URLs and REST APIs."""
    from handler.runtime.api import Streamed

    return Streamed(_Frames(response), FRAMED_TYPE)


class _Frames:
    """The prelude, 8 NUL bytes and the body. `close` closes the response."""

    def __init__(self, response: "HttpResponse") -> None:
        prelude = {
            "statusCode": response.status,
            "headers": dict(response.headers),
            "cookies": [],
        }
        self._response = response
        head = [json.dumps(prelude).encode() + _SEPARATOR]
        body = [response.body.encode()] if response.body else []
        self._frames = chain(head, body, map(str.encode, response.chunks))

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._frames)

    def close(self) -> None:
        """See `HttpResponse.close`."""
        self._response.close()
