"""Results or errors -> the exact shape that the event's source expects. Pure.

Shapes: AWS Lambda Developer Guide (ALB, Function URL), API Gateway Developer Guide, "Lambda proxy
integration"; `Server-Timing` is W3C Server Timing, durations in milliseconds.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt2core.errors import GPT2Error, InvalidArgument, ModelError, PromptTooLong
from handler import errors
from handler.dialects import Request
from handler.events import MAX_BODY_BYTES, Source
from handler.generation import Completion

if TYPE_CHECKING:
    from handler.batch_events import Item

MAX_ALB_BYTES = 1024 * 1024
# AWS Step Functions Developer Guide, "Quotas": input or output of a state, 256 KiB.
MAX_STATE_BYTES = 256 * 1024
MAX_ID_BYTES = 64  # of an id that comes back in any case

STATUS: tuple[tuple[type[GPT2Error], int], ...] = (
    (errors.BadRequest, 400),
    (InvalidArgument, 400),
    (errors.RouteNotFound, 404),
    (errors.MethodNotAllowed, 405),
    (errors.BodyTooLarge, 413),
    (errors.UnsupportedContentType, 415),
    (PromptTooLong, 422),
    (errors.LimitExceeded, 422),
    (ModelError, 503),
    (errors.ModelUnavailable, 503),
)
_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
    413: "Payload Too Large", 415: "Unsupported Media Type", 422: "Unprocessable Entity",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip
# Hugging Face's names for why a text ended; "deadline" is ours alone.
_HF_REASONS = {"length": "length", "stop": "stop_sequence", "eos": "eos_token"}


class Report(NamedTuple):
    """What every reply says about the invoke itself."""

    timings_ms: Mapping[str, float]
    cold_start: bool
    model: str | None
    origin: str | None = None
    """Where the model came from: `volume`, `cache`, `s3`, `hub` or `demo`."""


def status_of(error: GPT2Error) -> int:
    """The HTTP status of an error; 500 for those that are ours."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def generated(
    source: Source, request: Request, completions: Sequence[Completion], report: Report
) -> Any:
    """The reply to a request for text."""
    if request.dialect == "huggingface":
        payload: Any = [_huggingface(c, request) for c in completions]
    else:
        items = [_native(c, request) for c in completions]
        body = {"generations": items} if request.is_list else items[0]
        payload = body | _about(report) | ({"id": request.id} if request.has_id else {})
    return _reply(source, 200, payload, report)


def health(source: Source, report: Report) -> Any:
    """The reply to GET /health. The model is null until something has needed it."""
    return _reply(source, 200, {"status": "ok"} | _about(report), report)


def warmed_up(source: Source, report: Report) -> Any:
    """The reply to a warm-up."""
    return _reply(source, 200, {"status": "warm"} | _about(report), report)


def populated(source: Source, filled: Mapping[str, Any], report: Report) -> Any:
    """The reply to a request to fill the volume: `filled` tells what it holds now."""
    return _reply(source, 200, dict(filled) | _about(report), report)


def failed(source: Source, error: GPT2Error, report: Report) -> Any:
    """The reply that says what went wrong."""
    body = {"error": _error(error)}
    headers = {"Allow": error.allow} if isinstance(error, errors.MethodNotAllowed) else {}
    return _reply(source, status_of(error), body, report, headers)


def result_line(
    item: "Item", done: Sequence[Completion] | GPT2Error, number: int | None = None
) -> bytes:
    """One result of a batch as a line of JSON, which depends on its request alone."""
    return (json.dumps(result_of(item, done, number), ensure_ascii=False) + "\n").encode()


def result_of(
    item: "Item", done: Sequence[Completion] | GPT2Error, number: int | None = None
) -> dict[str, Any]:
    """One result of a batch: what its request is called, its line, and its text or its error."""
    result = {"id": item.id} | ({} if number is None else {"line": number})
    if isinstance(done, GPT2Error):
        return result | {"error": _error(done)}
    assert isinstance(item.work, Request)
    parts = [_native(c, item.work) for c in done]
    return result | ({"generations": parts} if item.work.is_list else parts[0])


def queue_failures(names: Sequence[str]) -> dict[str, Any]:
    """The reply to messages of a queue: those that stay in it."""
    return {"batchItemFailures": [{"itemIdentifier": name} for name in names]}


def map_results(
    items: "Sequence[Item]", done: Sequence[Sequence[Completion] | GPT2Error]
) -> dict[str, Any]:
    """The reply to a batch of a Distributed Map, within what Step Functions carries.

    What does not fit any more is an error of its item: its text would be lost anyway.
    """
    whole = [
        {"status": "error" if isinstance(result, GPT2Error) else "ok", "index": index}
        | result_of(item, result)
        for index, (item, result) in enumerate(zip(items, done, strict=True))
    ]
    refused = [_does_not_fit(body) for body in whole]
    size = len(json.dumps({"results": refused}).encode())  # as ASCII: the most that it can take
    if size > MAX_STATE_BYTES:
        raise errors.BodyTooLarge(
            f"a reply to {len(items)} items does not fit the {MAX_STATE_BYTES} bytes that it may"
            " have: send smaller batches"
        )
    results = []
    for body, error in zip(whole, refused, strict=True):
        more = len(json.dumps(body)) - len(json.dumps(error))
        fits = size + more <= MAX_STATE_BYTES
        results.append(body if fits else error)
        size += more if fits else 0
    return {"results": results}


def _does_not_fit(body: Mapping[str, Any]) -> dict[str, Any]:
    """What stands for an item whose result is too large; its id, too, if that is short."""
    error = errors.BodyTooLarge("over what a batch's reply may have: send smaller batches")
    name = body["id"] if len(json.dumps(body["id"])) <= MAX_ID_BYTES else None
    return {"status": "error", "index": body["index"], "id": name, "error": _error(error)}


def _error(error: GPT2Error) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": error.message, "param": error.param}


def _native(c: Completion, request: Request) -> dict[str, Any]:
    return {
        "generated_text": c.prompt + c.text if request.return_full_text else c.text,
        "finish_reason": c.finish_reason,
        "usage": {"prompt_tokens": c.prompt_tokens, "completion_tokens": len(c.ids)},
    }


def _huggingface(c: Completion, request: Request) -> dict[str, Any]:
    item: dict[str, Any] = {
        "generated_text": c.prompt + c.text if request.return_full_text else c.text
    }
    if request.details:
        item["details"] = {
            "finish_reason": _HF_REASONS.get(c.finish_reason, c.finish_reason),
            "generated_tokens": len(c.ids),
        }
    return item


def _about(report: Report) -> dict[str, Any]:
    return {
        "timings_ms": dict(report.timings_ms),
        "cold_start": report.cold_start,
        "model": report.model,
        "model_source": report.origin,
    }


def _server_timing(report: Report) -> str:
    """Every phase; the one that found the model says where, as the metric's description."""
    found = f';desc="{report.origin}"' if report.origin else ""
    return ", ".join(
        f"{phase}{found if phase == 'source' else ''};dur={ms:g}"
        for phase, ms in report.timings_ms.items()
    )


def _reply(
    source: Source,
    status: int,
    payload: Any,
    report: Report,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """`payload` itself for a direct invoke, an HTTP response for the others."""
    limit = MAX_ALB_BYTES if source.kind == "alb" else MAX_BODY_BYTES
    body = json.dumps(payload, ensure_ascii=False)
    size = len(body.encode())
    if size > limit:
        error = errors.BodyTooLarge(
            f"the reply has {size} bytes and its source carries {limit}: ask for less at once"
        )
        return failed(source, error, report)
    if not source.is_http:
        return payload
    named = {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        "Server-Timing": _server_timing(report),
        "x-cold-start": str(report.cold_start).lower(),
        **(headers or {}),
    }
    reply: dict[str, Any] = {"statusCode": status, "body": body, "isBase64Encoded": False}
    if source.kind == "alb":
        reply["statusDescription"] = f"{status} {_REASONS[status]}"
    if source.multi_value:
        reply["multiValueHeaders"] = {name: [value] for name, value in named.items()}
    else:
        reply["headers"] = named
    return reply
