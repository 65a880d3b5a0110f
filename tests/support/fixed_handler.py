"""A handler that runs the action in its event, to compare runtimes."""

import os
import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

calls: list[str] = []
together = threading.Barrier(4)


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
        client = context.client_context
        return found | {
            "remaining": 0 < remaining <= 30_000,
            "trace": os.environ.get("_X_AMZN_TRACE_ID"),
            "identity": context.identity.cognito_identity_id,
            "pool": context.identity.cognito_identity_pool_id,
            "custom": client and client.custom,
            "env": client and client.env,
            "app": client and client.client and client.client.app_title,
            "w3c": context.w3c(),
            "text": repr(context),
        }
    if action == "log":
        context.log(event["message"])
        context.log(5)
        return None
    if action == "decimals":
        return [Decimal(text) for text in event["texts"]] + [{"bytes": b"\xc3\xa4"}]
    if action == "stream":
        from handler.runtime.api import Streamed

        return Streamed(_chunks(**{"fail": "", "kind": ""} | event), "text/plain")
    if action == "together":
        together.wait(timeout=20)
        return event["number"]
    if action == "calls":
        return calls
    return {"echo": event}


def _chunks(chunks: list[Any], fail: str, kind: str, **_: Any) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk.encode() if isinstance(chunk, str) else chunk
    if fail:
        kinds = {"OSError": OSError, "ConnectionError": ConnectionError}
        raise kinds.get(kind, RuntimeError)(fail)


def before_snapshot() -> None:
    if os.environ.get("FAIL") == "before":
        raise RuntimeError("no snapshot")
    calls.append("before")


def enable_concurrency() -> None:
    calls.append("concurrency")


def after_restore() -> None:
    if os.environ.get("FAIL") == "after":
        raise RuntimeError("no restore")
    calls.append("after")
