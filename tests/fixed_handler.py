"""A handler that does as its event says, for comparing runtimes."""

import os
from collections.abc import Iterator
from typing import Any

calls: list[str] = []


def handle(event: Any, context: Any) -> Any:
    action = event.get("do") if isinstance(event, dict) else None
    if action == "raise":
        raise ValueError(event["message"])
    if action == "exit":
        raise SystemExit(3)
    if action == "bytes":
        return b"\x00\x01bytes"
    if action == "set":
        return {1, 2}
    if action == "context":
        names = [
            *("aws_request_id", "invoked_function_arn", "function_name", "function_version"),
            *("memory_limit_in_mb", "log_group_name", "log_stream_name", "tenant_id"),
        ]
        found = {name: getattr(context, name) for name in names}
        remaining = context.get_remaining_time_in_millis()
        identity = context.identity.cognito_identity_id
        return found | {
            "remaining": 0 < remaining <= 30_000,
            "trace": os.environ.get("_X_AMZN_TRACE_ID"),
            "identity": identity,
        }
    if action == "stream":
        from handler.runtime_api import Streamed

        return Streamed(_chunks(event["chunks"], event.get("fail")), "text/plain")
    if action == "calls":
        return calls
    return {"echo": event}


def _chunks(texts: list[str], failure: str | None) -> Iterator[bytes]:
    for text in texts:
        yield text.encode()
    if failure:
        raise RuntimeError(failure)


def before_snapshot() -> None:
    if os.environ.get("FAIL") == "before":
        raise RuntimeError("no snapshot")
    calls.append("before")


def after_restore() -> None:
    if os.environ.get("FAIL") == "after":
        raise RuntimeError("no restore")
    calls.append("after")
