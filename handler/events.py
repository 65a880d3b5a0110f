"""Any event -> a `Job`. Pure: no I/O, no clock, no environment.

Shapes of events: AWS Lambda Developer Guide (direct, ALB, Function URL), API Gateway Developer
Guide, "Lambda proxy integration" formats 1.0 and 2.0.
"""

import binascii
import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from handler import dialects
from handler.dialects import Request, shown
from handler.errors import (
    BadRequest,
    BodyTooLarge,
    MethodNotAllowed,
    RouteNotFound,
    UnsupportedContentType,
    UnsupportedEvent,
)

if TYPE_CHECKING:
    from handler.batch_events import Item, Record, S3Object

MAX_BODY_BYTES = 6 * 1024 * 1024  # Lambda's limit for a buffered invoke
ROUTES = {"/": ("POST",), "/generate": ("POST",), "/health": ("GET", "HEAD")}
SUPPORTED = (
    "direct invokes, API Gateway (REST, HTTP), Function URL, ALB, EventBridge schedules, SQS,"
    " created objects of S3 (also by EventBridge), and batches of a Distributed Map"
)
# Fields by which the events of services are known.
_MARKS = (
    "Records",
    "Items",
    "Event",
    "requestContext",
    "methodArn",
    "routeArn",
    "detail-type",
    "awslogs",
)
# What an operator asks for, with the function's own permissions and never over HTTP.
_ACTIONS: tuple[Literal["warmup", "populate"], ...] = ("warmup", "populate")


class Source(NamedTuple):
    """Where an event comes from, as far as the reply's shape depends on it."""

    kind: Literal[
        "direct", "api_gateway_v1", "api_gateway_v2", "function_url", "alb", "schedule",
        "sqs", "s3", "step_functions",
    ]  # fmt: skip
    multi_value: bool = False
    """ALB with multi-value headers: only `multiValueHeaders` counts, in both directions."""
    fifo: bool = False
    """SQS: whether messages must be done in order."""

    @property
    def is_http(self) -> bool:
        """Whether the reply is an HTTP response."""
        return self.kind in ("api_gateway_v1", "api_gateway_v2", "function_url", "alb")

    @property
    def is_batch(self) -> bool:
        """Whether an event is about many requests, with results elsewhere or of their own."""
        return self.kind in ("sqs", "s3", "step_functions")

    @property
    def takes_errors(self) -> bool:
        """Whether an error must be raised: for these, any reply is a success."""
        return self.kind == "schedule" or self.is_batch


class Job(NamedTuple):
    """What an event asks for."""

    action: Literal["generate", "health", "warmup", "populate", "queue", "objects", "items"]
    request: Request | None = None
    """Set for `generate`."""
    records: "tuple[Record, ...]" = ()
    """Set for `queue`."""
    objects: "tuple[S3Object, ...]" = ()
    """Set for `objects`."""
    items: "tuple[Item, ...]" = ()
    """Set for `items`."""


def source_of(event: Any) -> Source:
    """The source of any event whatever.

    Raises:
        UnsupportedEvent: an event that a service sent and that is no request for text.
    """
    if not isinstance(event, dict):
        return Source("direct")
    context = event.get("requestContext")
    if isinstance(context, dict) and "methodArn" not in event and "routeArn" not in event:
        if "elb" in context:
            return Source("alb", multi_value="multiValueHeaders" in event)
        if isinstance(context.get("http"), dict):
            url = ".lambda-url." in str(context.get("domainName", ""))
            return Source("function_url" if url else "api_gateway_v2")
        if "httpMethod" in event:
            return Source("api_gateway_v1")
    if event.get("source") in ("aws.events", "aws.scheduler"):
        return Source("schedule")
    marks = [mark for mark in _MARKS if mark in event]
    if not marks or "prompt" in event or "inputs" in event:
        return Source("direct")
    from handler import batch_events

    if batch_events.is_s3(event):
        return Source("s3")
    if "Items" in event:
        return Source("step_functions")
    queue = batch_events.queue_of(event)
    if queue:
        return Source("sqs", fifo=queue.endswith(".fifo"))
    raise UnsupportedEvent(
        f"events with {marks[0]!r} of this kind are not served; supported: {SUPPORTED}"
    )


def parse(event: Any, source: Source) -> Job:
    """The job of an event from `source`.

    Raises:
        BadRequest, RouteNotFound, MethodNotAllowed, BodyTooLarge, UnsupportedContentType: what the
            caller did wrong.
    """
    if source.kind == "schedule":
        return Job("warmup")
    if source.kind in ("sqs", "s3", "step_functions"):
        return _parse_batch(event, source)
    if source.is_http:
        return _parse_http(event, source)
    if not isinstance(event, dict):
        raise BadRequest(f"the event is {shown(event)}, not an object: send {dialects.EXAMPLE}")
    for action in _ACTIONS:
        if action in event:
            if event != {action: True}:
                raise BadRequest(f'send {{"{action}": true}} and nothing else', param=action)
            return Job(action)
    return Job("generate", dialects.parse_request(event))


def _parse_batch(event: dict[str, Any], source: Source) -> Job:
    from handler import batch_events  # a cold start over HTTP does without

    if source.kind == "sqs":
        return Job("queue", records=batch_events.parse_records(event["Records"]))
    if source.kind == "s3":
        return Job("objects", objects=batch_events.parse_objects(event))
    return Job("items", items=batch_events.parse_batch(event))


def _parse_http(event: dict[str, Any], source: Source) -> Job:
    method, path = _route(event, source)
    if path not in ROUTES:
        raise RouteNotFound(f"no route {shown(path)}: POST /generate, POST / or GET /health")
    if method not in ROUTES[path]:
        raise MethodNotAllowed(method, path, ", ".join(ROUTES[path]))
    if path == "/health":
        return Job("health")
    body = _body(event)
    fields = _fields(body, _header(event, source, "content-type"))
    for action in _ACTIONS:
        if action in fields:
            raise BadRequest(f"{action} is for direct invokes, not over HTTP", param=action)
    return Job("generate", dialects.parse_request(fields))


def _route(event: dict[str, Any], source: Source) -> tuple[str, str]:
    """Method and path, the stage taken off.

    Format 2.0 has the stage in front of the path, 1.0 only behind a custom domain.
    """
    context = event["requestContext"]
    if source.kind in ("api_gateway_v2", "function_url"):
        method, path = context["http"].get("method"), event.get("rawPath")
    else:
        method, path = event.get("httpMethod"), event.get("path")
    if not isinstance(method, str) or not isinstance(path, str):
        raise BadRequest("the event has no HTTP method or path")
    if not method.isascii() or not method.isalpha():
        raise BadRequest(f"{shown(method)} is no HTTP method")
    stage = context.get("stage")
    if path not in ROUTES and isinstance(stage, str) and f"{path}/".startswith(f"/{stage}/"):
        path = path[len(stage) + 1 :]
    if len(path) > 1:
        path = path.rstrip("/")
    return method.upper(), path or "/"


def _header(event: dict[str, Any], source: Source, name: str) -> str:
    """The last value of a header, its name in any case; "" if there is none."""
    found = ""
    for field in ("multiValueHeaders",) if source.multi_value else ("multiValueHeaders", "headers"):
        headers = event.get(field)
        for key, value in headers.items() if isinstance(headers, dict) else ():
            if isinstance(key, str) and key.lower() == name:
                last = value[-1] if isinstance(value, list) and value else value
                found = last if isinstance(last, str) else found
    return found


def _body(event: dict[str, Any]) -> str:
    """The body as text.

    Lambda hands a text body over as a string, any other base64-encoded.
    """
    body = event.get("body")
    if body is None or body == "":
        raise BadRequest(f"the body is empty: send {dialects.EXAMPLE}", param="body")
    if not isinstance(body, str):
        raise BadRequest(f"the event's body is {shown(body)}, not a string", param="body")
    if len(body) > MAX_BODY_BYTES * 4 // 3 + 4:
        raise _too_large(len(body))
    if not event.get("isBase64Encoded"):
        return body.removeprefix("\ufeff")
    try:
        raw = binascii.a2b_base64(body, strict_mode=True)  # `base64` takes 1 ms to import
    except (binascii.Error, ValueError) as error:
        raise BadRequest("the body is said to be base64 and is not", param="body") from error
    if len(raw) > MAX_BODY_BYTES:
        raise _too_large(len(raw))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"byte {error.start} of the body is not UTF-8", param="body") from None


def _too_large(size: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body has {size} bytes and the limit is {MAX_BODY_BYTES}: send less", param="body"
    )


def _fields(body: str, content_type: str) -> dict[str, Any]:
    """The fields of a JSON or form body; without a content type it is JSON."""
    kind, _, parameters = content_type.lower().partition(";")
    kind = kind.strip()
    charset = parameters.partition("charset=")[2].strip(' "') or "utf-8"
    if charset.split(";")[0].strip(' "') not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedContentType(f"charset {shown(charset)} is not supported: send UTF-8")
    is_json = kind in ("", "application/json", "text/json") or kind.endswith("+json")
    is_form = kind == "application/x-www-form-urlencoded"
    if not is_json and not is_form:
        raise UnsupportedContentType(
            f"content type {shown(kind)} is not supported: send application/json or a form"
        )
    # `curl -d '{…}'` sends JSON and calls it a form.
    if is_form and not body.lstrip().startswith("{"):
        return dialects.parse_form(body)
    try:
        fields = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise BadRequest("the body is nested too deeply", param="body") from None
    except ValueError as error:
        where = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadRequest(f"the body is not JSON{where}", param="body") from None
    if not isinstance(fields, dict):
        raise BadRequest(
            f"the body is {shown(fields)}, not an object: send {dialects.EXAMPLE}", param="body"
        )
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
