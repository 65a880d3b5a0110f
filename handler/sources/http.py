"""HTTP requests as API Gateway, Function URLs and load balancers wrap them, and their replies.

Shapes: AWS Lambda Developer Guide (Function URL, ALB), API Gateway Developer Guide ("Lambda proxy
integration", formats 1.0 and 2.0); `Server-Timing` is W3C Server Timing, in milliseconds.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpt2core.errors import GPT2Error
from handler.dialects import dialect_at, dialect_of, dialects, route_of
from handler.dialects.request import EventStream, shown
from handler.errors import (
    BadRequest,
    MethodNotAllowed,
    RouteNotFound,
    TooManyRequests,
    Unauthorized,
    UnsupportedContentEncoding,
)
from handler.jobs import ACTIONS, Document, Generate, Health, Job, OpenApi, Page, Show
from handler.sources import body
from handler.sources.source import Source

if TYPE_CHECKING:
    from handler.settings import Settings
    from handler.telemetry import Report

HEALTH = "/health"
# Routes that need no key.
DOCUMENTS: dict[str, type[Job]] = {HEALTH: Health, "/": Page, "/openapi.json": OpenApi}
_READ = ("GET", "HEAD")
MAX_ALB_BYTES = 1024 * 1024
_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    413: "Payload Too Large", 415: "Unsupported Media Type", 422: "Unprocessable Entity",
    429: "Too Many Requests", 499: "Client Closed Request",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


class HttpResponse:
    """What goes back over HTTP, apart from how its source wraps it.

    `close` it when it has been sent, or will not be: `chunks` may be under way.
    """

    def __init__(
        self, status: int, headers: Mapping[str, str], body: str = "", chunks: Iterable[str] = ()
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.chunks = chunks
        """Pieces that follow `body`, as they come."""

    def close(self) -> None:
        """Stop whatever makes `chunks`."""
        close = getattr(self.chunks, "close", None)
        if close:
            close()

    def text(self) -> str:
        """The whole body, for a source that does not stream."""
        return self.body + "".join(self.chunks)


def recognise(event: dict[str, Any]) -> "Http | None":
    """Whether this is an HTTP request; an authorizer's question about one is not."""
    context = event["requestContext"]
    if not isinstance(context, dict) or "methodArn" in event or "routeArn" in event:
        return None
    if "elb" in context:
        return LoadBalancer(event)
    if isinstance(context.get("http"), dict):
        url = ".lambda-url." in str(context.get("domainName", ""))
        return FunctionUrl(event) if url else HttpApi(event)
    return RestApi(event) if "httpMethod" in event else None


def routes() -> dict[str, tuple[str, ...]]:
    """Every path that is served, with its methods."""
    served = {path: methods for d in dialects() for path, methods in d.routes.items()}
    return served | {path: (*served.get(path, ()), *_READ) for path in DOCUMENTS}


class Http(Source):
    """A request over HTTP, whose errors are replies."""

    raises = False
    is_decoded = False
    """Whether the path arrives without percent signs."""
    waits_s: float | None = None
    """After how many seconds the source gives up and answers by itself."""
    header_fields: tuple[str, ...] = ("multiValueHeaders", "headers")
    """Where the event has its headers."""
    door: str | None = None
    """What GPT2_STREAM calls it, where it can stream."""

    def __init__(self, event: dict[str, Any]) -> None:
        super().__init__(event)
        self._context: dict[str, Any] = event["requestContext"]
        self._sends_as = "event"
        self._cors: Mapping[str, str] = {}  # headers of every reply
        self._dialect = next(dialects())  # errors are told in it until there is a better one
        sent = self._context.get("timeEpoch", self._context.get("requestTimeEpoch"))
        self.sent_at = sent / 1000 if type(sent) in (int, float) else None

    def timeout_s(self, settings: "Settings") -> float | None:
        """What the settings say, or what this source is known for. Who gets a stream waits on."""
        return settings.http_timeout or (None if self.streams else self.waits_s)

    def connect(self, settings: "Settings", context: Any) -> None:
        """Whoever calls the function may take a response as it is, or frames of one that streams.

        AWS's client takes neither, nor is the door of an event told apart by anything else.
        """
        if getattr(context, "takes_responses", False):
            self._sends_as, self.streams = "response", True
        elif self.door in settings.stream and getattr(context, "accepts_streams", False):
            self._sends_as, self.streams = "frames", True

    def parse(self, settings: "Settings") -> Job:
        """What the request asks for.

        Raises:
            BadRequest, Unauthorized, RouteNotFound, MethodNotAllowed, BodyTooLarge, LimitExceeded,
            UnsupportedContentType, UnsupportedContentEncoding: what the caller did wrong.
        """
        method, path = self._method_and_path()
        path = _served_path(path, self._context.get("stage"), settings.base_path)
        if settings.cors_origins:
            from handler import cors

            self._cors = cors.headers_of(self._header("origin"), settings.cors_origins)
            asks = method == "OPTIONS" and self._header("access-control-request-method")
            if asks and (methods := _methods_of(path)):
                return Show(Document("", cors.preflight(methods)))
        if path in DOCUMENTS and method in _READ:
            return DOCUMENTS[path]()
        dialect, methods = dialect_at(path), _methods_of(path)
        self._dialect = dialect or self._dialect
        # Before the route: strangers learn no routes, and cause no errors that alarms count.
        if settings.api_key is not None and not self._is_signed():
            self._check_key(settings.api_key)
        if not methods:
            known = ", ".join(f"{methods[0]} {route}" for route, methods in routes().items())
            raise RouteNotFound(f"no route {shown(path)}: there are {known}")
        if method not in methods:
            raise MethodNotAllowed(shown(method), path, ", ".join(methods))
        assert dialect
        if method != "POST":
            job: Job = dialect.read(path)  # type: ignore[attr-defined]  # those with such routes
            return job
        event = self._event
        text = body.text_of(
            event.get("body"), bool(event.get("isBase64Encoded")), self._header("content-encoding")
        )
        if body.is_form(self._header("content-type"), text):
            form = body.form_fields(text)
            self._dialect = dialect_of(form, path) or dialect
            fields = self._dialect.from_form(form)
        else:
            fields = body.json_fields(text)
            self._dialect = dialect_of(fields, path) or dialect
        for action in ACTIONS:
            if action in fields:
                raise BadRequest(f"{action} is for direct invokes, not over HTTP", param=action)
        return Generate(self._dialect.parse(fields))

    def reply(self, result: Any, report: "Report") -> Any:
        """The result as JSON, or as an event stream."""
        return self._reply(200, result, report)

    def fail(self, error: GPT2Error, report: "Report") -> Any:
        """The error in the dialect of the route, or of the fields where they are known."""
        status, payload = self._dialect.render_error(error)
        return self._reply(status, payload, report, _headers_of(error))

    def wrap(self, response: HttpResponse) -> dict[str, Any]:
        """The response in the shape that this source expects."""
        return {
            "statusCode": response.status,
            "headers": dict(response.headers),
            "body": response.text(),
            "isBase64Encoded": False,
        }

    def _reply(
        self, status: int, payload: Any, report: "Report", headers: Mapping[str, str] | None = None
    ) -> Any:
        named = {
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            "Server-Timing": _server_timing(report),
            "x-cold-start": str(report.cold_start).lower(),
            "x-request-id": self._request_id(),
            **self._cors,
            **(headers or {}),
        }
        if isinstance(payload, EventStream):
            named["Content-Type"] = "text/event-stream; charset=utf-8"
            response = HttpResponse(status, named, chunks=payload)
        elif isinstance(payload, Document):
            response = HttpResponse(status, {**named, **payload.headers}, payload.text)
        else:
            response = HttpResponse(status, named, json.dumps(payload, ensure_ascii=False))
        if self._sends_as == "frames":
            from handler.streaming import framed

            return framed(response)
        return response if self._sends_as == "response" and response.chunks else self.wrap(response)

    def _is_signed(self) -> bool:
        """Whether IAM has let the request in. The gateway says so, and no caller can."""
        authorizer = self._context.get("authorizer")
        identity = self._context.get("identity")  # of REST APIs, whose fields are null otherwise
        return bool(
            (isinstance(authorizer, dict) and authorizer.get("iam"))
            or (isinstance(identity, dict) and identity.get("userArn"))
        )

    def _check_key(self, key: str) -> None:
        """Raises `Unauthorized` unless the request carries `key` as a bearer token."""
        from _operator import _compare_digest  # `hmac.compare_digest`, without its 5 ms

        scheme, _, given = self._header("authorization").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else ""
        if not _compare_digest(given.encode("utf-8", "replace"), key.encode()):
            raise Unauthorized(bool(given))

    def _request_id(self) -> str:
        """What the gateway calls the request; load balancers have no name for it."""
        given = self._context.get("requestId")
        return given if isinstance(given, str) and given else os.urandom(16).hex()

    def _method_and_path(self) -> tuple[str, str]:
        method, path = self._target()
        if not isinstance(method, str) or not isinstance(path, str):
            raise BadRequest("the event has no HTTP method or path")
        if "%" in path and not self.is_decoded:
            from urllib.parse import unquote  # 3 ms

            path = unquote(path)
        while "//" in path:
            path = path.replace("//", "/")
        return method.upper(), path

    def _target(self) -> tuple[Any, Any]:
        """The request's method and path, as the event has them."""
        return self._event.get("httpMethod"), self._event.get("path")

    def _header(self, name: str) -> str:
        """A header, its name in any case; "" if there is none. Several values become one."""
        for field in self.header_fields:
            headers = self._event.get(field)
            found: list[str] = []
            for key, value in headers.items() if isinstance(headers, dict) else ():
                if isinstance(key, str) and key.lower() == name:
                    values = value if isinstance(value, list) else [value]
                    found += [v for v in values if isinstance(v, str)]
            if found:
                return ", ".join(found)
        return ""


class RestApi(Http):
    """A REST API of API Gateway, or an HTTP API with format 1.0."""

    kind = "api_gateway_v1"
    waits_s = 29

    def __init__(self, event: dict[str, Any]) -> None:
        super().__init__(event)
        self.is_decoded = event.get("version") == "1.0"  # only HTTP APIs have a version there
        self.door = None if self.is_decoded else "rest"


class HttpApi(Http):
    """An HTTP API of API Gateway, format 2.0."""

    kind = "api_gateway_v2"
    is_decoded = True
    waits_s: float | None = 30

    def _target(self) -> tuple[Any, Any]:
        return self._context["http"].get("method"), self._event.get("rawPath")


class FunctionUrl(HttpApi):
    """A Function URL: format 2.0 with the path as it came, and no time limit of its own."""

    kind = "function_url"
    door = "url"
    is_decoded = False
    waits_s = None


class LoadBalancer(Http):
    """An Application Load Balancer."""

    kind = "alb"
    waits_s = 60
    max_reply_bytes = MAX_ALB_BYTES

    def __init__(self, event: dict[str, Any]) -> None:
        super().__init__(event)
        self.has_multi_values = "multiValueHeaders" in event
        """With multi-value headers only `multiValueHeaders` counts, in both directions."""
        self.header_fields = ("multiValueHeaders" if self.has_multi_values else "headers",)

    def wrap(self, response: HttpResponse) -> dict[str, Any]:
        """With the reason, which a load balancer sends on."""
        reply = super().wrap(response)
        reply["statusDescription"] = f"{response.status} {_REASONS[response.status]}"
        if self.has_multi_values:
            headers = reply.pop("headers")
            reply["multiValueHeaders"] = {name: [value] for name, value in headers.items()}
        return reply


def _served_path(path: str, stage: Any, base_path: str) -> str:
    """The path of a route, without the prefixes that gateways leave in front of it.

    Format 2.0 has the stage there; mappings of custom domains, base paths and rules have theirs.
    """
    stage = f"/{stage}" if isinstance(stage, str) and stage else ""
    for prefixes in ((), (stage,), (base_path,), (stage, base_path), (base_path, stage)):
        rest = path
        for prefix in prefixes:
            if prefix and f"{rest}/".startswith(f"{prefix}/"):
                rest = rest[len(prefix) :]
        rest = rest.rstrip("/") or "/"
        if rest in DOCUMENTS or dialect_at(rest):
            return rest
    return path


def _methods_of(path: str) -> tuple[str, ...]:
    """The methods of a path; () if there is no such route."""
    dialect = dialect_at(path)
    route = dialect and route_of(dialect, path)
    served = dialect.routes[route] if dialect and route else ()
    return (*served, *(_READ if path in DOCUMENTS else ()))


def _headers_of(error: GPT2Error) -> dict[str, str]:
    if isinstance(error, MethodNotAllowed):
        return {"Allow": error.allow}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, TooManyRequests):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, UnsupportedContentEncoding):
        return {"Accept-Encoding": ", ".join(body.CODINGS)}
    return {}


def _server_timing(report: "Report") -> str:
    """Every phase; the one that found the model says where, as the metric's description."""
    found = f';desc="{report.origin}"' if report.origin else ""
    return ", ".join(
        f"{phase}{found if phase == 'source' else ''};dur={ms:g}"
        for phase, ms in report.timings_ms.items()
    )
