"""The OpenAPI 3.1 document at `GET /openapi.json`; imported when it is requested.

Each dialect describes its requests, replies and errors (`Dialect.describe`).
Source: https://spec.openapis.org/oas/v3.1.0
"""

from collections.abc import Sequence

from gpt2core import __version__
from gpt2core.errors import GPT2Error
from handler import errors
from handler.dialects import dialects
from handler.dialects.request import Dialect
from handler.dialects.schemas import OBJECT, REPORT, TEXT, Schema, object_of
from handler.jobs import Health, Job, OpenApi, Page
from handler.sources.http import PUBLIC_ROUTES, routes

# An error of each kind, with its description.
_KEY = (errors.Unauthorized(False), "The API key is missing or invalid.")
_MODEL = (errors.ModelNotServed(""), "The model does not exist.")
_INTERNAL = (errors.InternalError(""), "Internal error.")
_UNSUPPORTED = (errors.RouteNotFound(""), "Not supported.")
_INVALID = (
    (errors.BadRequest(""), "Invalid request."),
    _KEY,
    (errors.BodyTooLarge(""), "The body is too large."),
    (errors.UnsupportedContentType(""), "The content type or content coding is not supported."),
    _INTERNAL,
)
_FAILED = (
    (
        errors.LimitExceeded(""),
        "The request exceeds the model's context or a limit of the settings.",
    ),
    (errors.TooManyRequests(1), "Too many requests are in progress."),
    (errors.ModelUnavailable(""), "The model is not available."),
)
_PARTS = ("request", "reply", "error")


def document() -> Schema:
    """The document, with all routes."""
    paths: Schema = {}
    for route, methods in routes().items():
        below = len(route) > 1 and route.endswith("/")
        path: Schema = {}
        if below:
            path["parameters"] = [
                {"name": "id", "in": "path", "required": True, "schema": TEXT,
                 "description": "May contain /, encoded as %2F."}
            ]  # fmt: skip
        for method in methods:
            kind = PUBLIC_ROUTES.get(route) if method != "POST" else None
            path[method.lower()] = _public(kind, method) if kind else _operation(route, method)
        paths[f"{route}{{id}}" if below else route] = path
    schemas = {
        _name(dialect, part): schema
        for dialect in dialects()
        for part, schema in dialect.describe().items()
        if part in _PARTS
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GPT-2 on AWS Lambda",
            "version": __version__,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "./"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer",
                        "description": "The value of GPT2_API_KEY, if it is set."}
            },
        },
        "security": [{"key": []}, {}],
    }  # fmt: skip


def _public(kind: type[Job], method: str) -> Schema:
    """An operation of `PUBLIC_ROUTES`."""
    described: dict[type[Job], tuple[str, str, Schema]] = {
        Health: (
            "Check that the function responds, without opening the model",
            "application/json",
            object_of(status={"const": "ok"}, **REPORT),
        ),
        Page: ("The web page", "text/html", TEXT),
        OpenApi: ("This document", "application/json", OBJECT),
    }
    summary, content_type, schema = described[kind]
    reply: Schema = {"description": "The headers without the body."}
    if method == "GET":
        reply = {"description": "Success.", "content": {content_type: {"schema": schema}}}
    return {"summary": summary, "security": [], "responses": {"200": reply}}


def _operation(route: str, method: str) -> Schema:
    """An operation of the dialects that serve the route."""
    serving = [d for d in dialects() if method in d.routes.get(route, ())]
    first = serving[0].describe()
    if method != "POST":
        summary, schema = first.get("reads", {}).get(route, ("Read", OBJECT))
        reply = {"description": "Success.", "content": {"application/json": {"schema": schema}}}
        return {
            "summary": summary,
            "responses": {"200": reply, **_errors(serving, [_KEY, _MODEL, _INTERNAL])},
        }
    operation = {
        "summary": first.get("summary", "Continue prompts"),
        "requestBody": {"required": True, "content": _content(serving, "request")},
    }
    if not any(dialect.is_supported for dialect in serving):
        errors = _errors(serving, [*_INVALID, _UNSUPPORTED])
        return operation | {"deprecated": True, "responses": errors}
    has_model = any(
        "model" in d.describe().get("request", {}).get("properties", ()) for d in serving
    )
    streams: Schema = {d.stream_class.content_type.partition(";")[0]: {} for d in serving}
    done = {
        "description": "The continuation; an event stream if `stream` is true.",
        "content": _content(serving, "reply") | streams,
    }
    failures = [*_INVALID, *_FAILED, *([_MODEL] if has_model else [])]
    return operation | {"responses": {"200": done, **_errors(serving, failures)}}


def _errors(serving: Sequence[Dialect], kinds: Sequence[tuple[GPT2Error, str]]) -> Schema:
    """The replies for errors of these kinds, by the status that the dialects give them."""
    content = _content(serving, "error")
    found: Schema = {}
    for error, text in kinds:
        for dialect in serving:
            status = str(dialect.render_error(error)[0])
            found.setdefault(status, {"description": text, "content": content})
    return dict(sorted(found.items()))


def _content(serving: Sequence[Dialect], part: str) -> Schema:
    """The JSON of a request, reply or error in any of the dialects."""
    schemas = [
        {"$ref": f"#/components/schemas/{_name(dialect, part)}"}
        if part in dialect.describe()
        else OBJECT
        for dialect in serving
    ]
    return {"application/json": {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}


def _name(dialect: Dialect, part: str) -> str:
    """The name of a schema: `NativeRequest`."""
    return f"{type(dialect).__name__}{part.title()}"
