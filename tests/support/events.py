"""Events and contexts for tests, made from the event files in `events/`."""

import base64
import json
from pathlib import Path
from typing import Any

EVENTS = Path(__file__).parent.parent.parent / "events"


class Context:
    """The part of AWS's context object that the function uses."""

    aws_request_id = "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"
    function_name = "gpt2-Function-abc"

    def __init__(self, remaining_ms: int = 60_000) -> None:
        self.remaining_ms = remaining_ms

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining_ms


def event_names(*kinds: str) -> list[str]:
    """The names of all event files, or of these kinds: `direct`, `bad`, `batch`, …"""
    names = sorted(path.stem for path in EVENTS.glob("*.json"))
    return [name for name in names if not kinds or name.split("-")[0] in kinds]


def load_event(name: str) -> Any:
    """The event in `events/NAME.json`."""
    return json.loads((EVENTS / f"{name}.json").read_text())


def http_event(
    body: Any = None,
    *,
    source: str = "url",
    path: str | None = None,
    method: str | None = None,
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """The event of `source` (url, api, rest, alb) for a POST of `fields`, or of `body`.

    Bytes are sent in base64, as a binary body. `headers` replace those of the event file.
    """
    event: dict[str, Any] = load_event(f"{source}-generate")
    event["body"] = json.dumps(fields) if fields else body
    event["isBase64Encoded"] = isinstance(body, bytes)
    if isinstance(body, bytes):
        event["body"] = base64.b64encode(body).decode()
    if headers is not None:
        event["headers"] = headers
        if "multiValueHeaders" in event:
            event["multiValueHeaders"] = {name: [value] for name, value in headers.items()}
    if path is not None:
        event["rawPath" if source in ("url", "api") else "path"] = path
    if method is not None:
        target = event["requestContext"]["http"] if source in ("url", "api") else event
        target["method" if source in ("url", "api") else "httpMethod"] = method
    return event


def message(
    body: Any, name: str = "m0", *, fifo: bool = False, group: str | None = None
) -> dict[str, Any]:
    """A queue message; `group` is its MessageGroupId."""
    event = load_event("batch-sqs-fifo" if fifo else "batch-sqs")
    one: dict[str, Any] = event["Records"][0]
    if group:
        one["attributes"]["MessageGroupId"] = group
    return one | {"messageId": name, "body": body if isinstance(body, str) else json.dumps(body)}


def queue_event(*bodies: Any, fifo: bool = False, groups: str = "") -> dict[str, Any]:
    """Queue messages `m0`, `m1`, …; `groups` has one letter per message for its group."""
    names = groups or " " * len(bodies)
    return {
        "Records": [
            message(body, f"m{i}", fifo=fifo, group=group.strip())
            for i, (body, group) in enumerate(zip(bodies, names, strict=True))
        ]
    }


def failed(reply: Any) -> list[str]:
    """The ids of the messages that failed."""
    return [failure["itemIdentifier"] for failure in reply["batchItemFailures"]]


def payload(reply: Any) -> Any:
    """The body of an HTTP reply, or the reply itself."""
    return json.loads(reply["body"]) if "statusCode" in reply else reply
