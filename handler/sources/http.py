"""HTTP requests from API Gateway, Function URLs and load balancers, and their replies.

Shapes: AWS Lambda Developer Guide (Function URL, ALB), API Gateway Developer Guide ("Lambda proxy
integration", formats 1.0 and 2.0), W3C Server Timing.
"""

import json
import os
from collections.abc import Iterable, Mapping

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.dialects import dialect_at, dialect_of, dialects, route_of
from handler.dialects.request import EventStream, short_repr
from handler.errors import (
    BadRequest,
    MethodNotAllowed,
    RouteNotFound,
    TooManyRequests,
    Unauthorized,
    UnsupportedContentEncoding,
)
from handler.jobs import ACTIONS, Document, Generate, Health, Job, OpenApi, Page, Preflight
from handler.sources import body
from handler.sources.source import Source

if TYPE_CHECKING:
    from handler.settings import Settings
    from handler.telemetry import Report

HEALTH = "/health"
# GET routes that do not need a key.
PUBLIC_ROUTES: dict[str, type[Job]] = {HEALTH: Health, "/": Page, "/openapi.json": OpenApi}
_READ_METHODS = ("GET", "HEAD")
MAX_ALB_BYTES = 1024 * 1024
_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    413: "Payload Too Large", 415: "Unsupported Media Type", 422: "Unprocessable Entity",
    429: "Too Many Requests", 499: "Client Closed Request",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


class HttpResponse:
    """An HTTP response, independent of the source. Call `close` after sending it or giving up."""

    def __init__(
        self, status: int, headers: Mapping[str, str], body: str = "", chunks: Iterable[str] = ()
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.chunks = chunks
        """Chunks of the body that follow `body`, generated while they are sent."""

    def close(self) -> None:
        """Stop the generation of `chunks`."""
        close = getattr(self.chunks, "close", None)
        if close:
            close()

    def text(self) -> str:
        """The complete body, for a source that does not stream."""
        return self.body + "".join(self.chunks)


def recognize(event: dict[str, Any]) -> "Http | None":
    """The source of an HTTP request, or None for other events, such as those of authorizers."""
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
    """All paths with their methods."""
    found = {path: methods for d in dialects() for path, methods in d.routes.items()}
    return found | {path: (*found.get(path, ()), *_READ_METHODS) for path in PUBLIC_ROUTES}


def _listed() -> list[str]:
    """The supported routes with their methods, for an error; HEAD is implied by GET."""
    unsupported = {path for d in dialects() if not d.is_supported for path in d.routes}
    return [
        f"{method} {path}{'{id}' if path.endswith('/') and path != '/' else ''}"
        for path, methods in routes().items()
        for method in sorted({*methods} - {"HEAD"})
        if path not in unsupported
    ]


class Http(Source):
    """An HTTP request. Errors are replies."""

    raises = False
    is_decoded = False
    """Whether the source has percent-decoded the path."""
    default_timeout_s: float | None = None
    """Seconds after which the source returns a timeout error to the client; None if never."""
    header_fields: tuple[str, ...] = ("multiValueHeaders", "headers")
    """Fields of the event that may contain the headers, in order of preference."""
    stream_option: str | None = None
    """Option of GPT2_STREAM that enables streaming; None if the source cannot stream."""

    def __init__(self, event: dict[str, Any]) -> None:
        super().__init__(event)
        self._context: dict[str, Any] = event["requestContext"]
        self._format = "event"  # of the reply: "event", "response" or "frames"
        self._cors: Mapping[str, str] = {}  # headers of every reply
        self._dialect = next(dialects())  # renders errors until the route or the fields are known
        sent = self._context.get("timeEpoch", self._context.get("requestTimeEpoch"))
        self.sent_at = sent / 1000 if type(sent) in (int, float) else None

    def timeout_s(self, settings: "Settings") -> float | None:
        """GPT2_HTTP_TIMEOUT, or the source's own timeout, which does not apply to streams."""
        return settings.http_timeout or (None if self.streams else self.default_timeout_s)

    def connect(self, settings: "Settings", context: Any) -> None:
        """Stream if GPT2_STREAM enables it and the runtime supports it; the event does not say.

        awslambdaric does not support streams. `handler.server` sends `HttpResponse` objects.
        """
        if getattr(context, "accepts_responses", False):
            self._format, self.streams = "response", True
        elif self.stream_option in settings.stream and getattr(context, "accepts_streams", False):
            self._format, self.streams = "frames", True

    def parse(self, settings: "Settings") -> Job:
        """The job that the request asks for.

        Raises:
            BadRequest, Unauthorized, RouteNotFound, MethodNotAllowed, BodyTooLarge, LimitExceeded,
            UnsupportedContentType, UnsupportedContentEncoding: the request is invalid.
        """
        method, path = self._method_and_path()
        path = _strip_prefixes(path, self._context.get("stage"), settings.base_path)
        if settings.cors_origins:
            from handler import cors

            self._cors = cors.headers_of(self._header("origin"), settings.cors_origins)
            preflight = method == "OPTIONS" and self._header("access-control-request-method")
            if preflight and (methods := _methods_of(path)):
                return Preflight(cors.preflight(methods))
        if path in PUBLIC_ROUTES and method in _READ_METHODS:
            return PUBLIC_ROUTES[path]()
        dialect, methods = dialect_at(path), _methods_of(path)
        self._dialect = dialect or self._dialect
        # Before the route is checked: 401 reveals no routes, and alarms do not count it.
        if settings.api_key is not None and not self._is_iam_authorized():
            self._check_key(settings.api_key)
        if not methods:
            raise RouteNotFound(f"no route {short_repr(path)}; routes: {', '.join(_listed())}")
        if method not in methods:
            raise MethodNotAllowed(short_repr(method), path, ", ".join(methods))
        assert dialect
        if method != "POST":
            return dialect.read(path)
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
                raise BadRequest(
                    f"{action} is not available over HTTP: invoke the function directly",
                    param=action,
                )
        return Generate(self._dialect.parse(fields))

    def reply(self, result: Any, report: "Report") -> Any:
        """The result as JSON, a document or an event stream."""
        return self._reply(200, result, report)

    def fail(self, error: GPT2Error, report: "Report") -> Any:
        """The error in the dialect of the request, if it is known."""
        status, payload = self._dialect.render_error(error)
        return self._reply(status, payload, report, _headers_of(error))

    def wrap(self, response: HttpResponse) -> dict[str, Any]:
        """The response in the format of this source."""
        return {
            "statusCode": response.status,
            "headers": dict(response.headers),
            "body": response.text(),
            "isBase64Encoded": False,
        }

    def _reply(
        self, status: int, payload: Any, report: "Report", headers: Mapping[str, str] | None = None
    ) -> Any:
        all_headers = {
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            "Server-Timing": _server_timing(report),
            "x-cold-start": str(report.cold_start).lower(),
            "x-request-id": self._request_id(),
            **self._cors,
            **(headers or {}),
        }
        if isinstance(payload, EventStream):
            all_headers["Content-Type"] = payload.content_type
            response = HttpResponse(status, all_headers, chunks=payload)
        elif isinstance(payload, Document):
            response = HttpResponse(status, {**all_headers, **payload.headers}, payload.text)
        else:
            response = HttpResponse(status, all_headers, json.dumps(payload, ensure_ascii=False))
        if self._format == "frames":
            from handler.streaming import framed

            return framed(response)
        return response if self._format == "response" and response.chunks else self.wrap(response)

    def _is_iam_authorized(self) -> bool:
        """Whether IAM has authorized the request. A caller cannot set `requestContext`."""
        authorizer = self._context.get("authorizer")
        identity = self._context.get("identity")  # of REST APIs; null fields without IAM
        return bool(
            (isinstance(authorizer, dict) and authorizer.get("iam"))
            or (isinstance(identity, dict) and identity.get("userArn"))
        )

    def _check_key(self, key: str) -> None:
        """Raise `Unauthorized` unless the request has `key` as its bearer token."""
        from _operator import _compare_digest  # `hmac.compare_digest`; hmac takes 5 ms to import

        scheme, _, given = self._header("authorization").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else ""
        if not _compare_digest(given.encode("utf-8", "replace"), key.encode()):
            raise Unauthorized(bool(given))

    def _request_id(self) -> str:
        """The gateway's request id; a random one behind a load balancer, which has none."""
        given = self._context.get("requestId")
        return given if isinstance(given, str) and given else os.urandom(16).hex()

    def _method_and_path(self) -> tuple[str, str]:
        method, path = self._target()
        if not isinstance(method, str) or not isinstance(path, str):
            raise BadRequest("the event has no HTTP method or path")
        if "%" in path and not self.is_decoded:
            from urllib.parse import unquote  # takes 3 ms to import

            path = unquote(path)
        while "//" in path:
            path = path.replace("//", "/")
        return method.upper(), path

    def _target(self) -> tuple[Any, Any]:
        """Method and path in the event."""
        return self._event.get("httpMethod"), self._event.get("path")

    def _header(self, name: str) -> str:
        """The value of a header, or ""; several values are joined. `name` is in lower case."""
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
    """API Gateway REST API, or HTTP API with payload format 1.0."""

    kind = "api_gateway_v1"
    default_timeout_s = 29

    def __init__(self, event: dict[str, Any]) -> None:
        super().__init__(event)
        is_http_api = event.get("version") == "1.0"  # REST APIs send no version
        self.is_decoded = is_http_api
        self.stream_option = None if is_http_api else "rest"


class HttpApi(Http):
    """API Gateway HTTP API with payload format 2.0."""

    kind = "api_gateway_v2"
    is_decoded = True
    default_timeout_s: float | None = 30

    def _target(self) -> tuple[Any, Any]:
        return self._context["http"].get("method"), self._event.get("rawPath")


class FunctionUrl(HttpApi):
    """Function URL: payload format 2.0 with an encoded path and no timeout."""

    kind = "function_url"
    stream_option = "url"
    is_decoded = False
    default_timeout_s = None


class LoadBalancer(Http):
    """Application Load Balancer."""

    kind = "alb"
    default_timeout_s = 60
    max_reply_bytes = MAX_ALB_BYTES

    def __init__(self, event: dict[str, Any]) -> None:
        super().__init__(event)
        self.has_multi_values = "multiValueHeaders" in event
        """Whether multi-value headers are enabled, for requests and replies."""
        self.header_fields = ("multiValueHeaders" if self.has_multi_values else "headers",)

    def wrap(self, response: HttpResponse) -> dict[str, Any]:
        """The response with `statusDescription`."""
        reply = super().wrap(response)
        reply["statusDescription"] = f"{response.status} {_REASONS[response.status]}"
        if self.has_multi_values:
            headers = reply.pop("headers")
            reply["multiValueHeaders"] = {name: [value] for name, value in headers.items()}
        return reply


def _strip_prefixes(path: str, stage: Any, base_path: str) -> str:
    """The path without the stage and GPT2_BASE_PATH, if that is a route; else `path`.

    Payload format 2.0 includes the stage; mappings of custom domains and ALB rules add base paths.
    """
    stage = f"/{stage}" if isinstance(stage, str) and stage else ""
    for prefixes in ((), (stage,), (base_path,), (stage, base_path), (base_path, stage)):
        route = path
        for prefix in prefixes:
            if prefix and f"{route}/".startswith(f"{prefix}/"):
                route = route[len(prefix) :]
        route = route.rstrip("/") or "/"
        if route in PUBLIC_ROUTES or dialect_at(route):
            return route
    return path


def _methods_of(path: str) -> tuple[str, ...]:
    """The methods of a path; () if it is not a route."""
    dialect = dialect_at(path)
    route = dialect and route_of(dialect, path)
    methods = dialect.routes[route] if dialect and route else ()
    return (*methods, *(_READ_METHODS if path in PUBLIC_ROUTES else ()))


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
    """All phases in milliseconds; `source` has the model's origin as its description."""
    origin = f';desc="{report.origin}"' if report.origin else ""
    return ", ".join(
        f"{phase}{origin if phase == 'source' else ''};dur={ms:g}"
        for phase, ms in report.timings_ms.items()
    )
