"""Processes one event: from its bytes to the reply or error posted to the Runtime API."""

import json
import os
import sys
from collections.abc import Callable, Iterable

from gpt2core.startup.slim_typing import Any, Protocol
from handler.runtime.api import Invocation, Streamed, error_body
from handler.runtime.context import Context
from handler.runtime.payload import InvalidEvent, InvalidReply, decoded, encoded

Handler = Callable[[Any, Any], Any]


class Api(Protocol):
    """The Runtime API, or `handler.server` in its place."""

    def respond(self, invocation: Invocation, body: bytes, content_type: str) -> None:
        """Send a reply."""

    def stream(
        self, invocation: Invocation, chunks: Iterable[bytes], content_type: str
    ) -> Exception | None:
        """Stream a reply; returns the exception that `chunks` raised, if any."""

    def fail(self, invocation: Invocation, body: bytes, kind: str, xray_cause: str) -> None:
        """Report an error."""


def answer(api: Api, invocation: Invocation, handler: Handler, *, sets_trace: bool = True) -> None:
    """Call the handler with an event and send the reply, or report the error."""
    if sets_trace:
        _set_trace(invocation.headers.get("lambda-runtime-trace-id"))
    try:
        event = decoded(invocation.body)
        reply = handler(event, Context(invocation))
        whole = None if isinstance(reply, Streamed) else encoded(reply)
    except Exception as error:  # noqa: BLE001 (reported to Lambda)
        kind = {InvalidEvent: "Runtime.UnmarshalError", InvalidReply: "Runtime.MarshalError"}.get(
            type(error), type(error).__name__
        )
        stack, cause = ([], _xray(kind, str(error), [])) if "." in kind else stack_of(error)
        log(kind, invocation.request_id, stack)
        body = error_body(str(error), kind, invocation.request_id, stack)
        api.fail(invocation, body, kind, cause)
        return
    if whole:
        api.respond(invocation, *whole)
        return
    failure = api.stream(invocation, reply.chunks, reply.content_type)
    if failure:  # reported to the caller in the trailer
        log(type(failure).__name__, invocation.request_id, stack_of(failure)[0])


def _set_trace(trace_id: str | None) -> None:
    """Set the variable that tracing libraries and Lambda's recursive loop detection read."""
    if trace_id is None:
        os.environ.pop("_X_AMZN_TRACE_ID", None)
    else:
        os.environ["_X_AMZN_TRACE_ID"] = trace_id


def stack_of(error: Exception) -> tuple[list[str], str]:
    """The stack frames of the handler, as strings and in X-Ray's format."""
    import traceback

    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.dirname(frame.filename) != os.path.dirname(__file__)
    ]
    cause = _xray(type(error).__name__, str(error), frames)
    return traceback.format_list(frames), cause


def _xray(kind: str, message: str, frames: list[Any]) -> str:
    stack = [{"label": f.name, "path": f.filename, "line": f.lineno} for f in frames]
    fields = {
        "working_directory": os.getcwd(),
        "exceptions": [{"message": message, "type": kind, "stack": stack}],
        "paths": sorted({f.filename for f in frames}),
    }
    return json.dumps(fields)


def log(kind: str, request_id: str | None, stack: list[str], message: str | None = None) -> None:
    """Write a JSON log line. Omit `message` for an event's error: it may quote a prompt."""
    line = {"level": "ERROR", "type": kind, "request_id": request_id, "stack": stack}
    if message is not None:
        line["message"] = message
    print(json.dumps(line), file=sys.stderr, flush=True)
