"""The OpenAPI 3.1 document at `GET /openapi.json`; imported when it is requested.

It is built from the fields, limits and ranges that the dialects use to validate requests.
Source: https://spec.openapis.org/oas/v3.1.0
"""

from collections.abc import Iterable, Mapping
from typing import Any

from gpt2core import __version__
from gpt2core.sampling import MAX_BIAS, MAX_LOGPROBS, RANGES
from handler.dialects import huggingface, native, openai
from handler.dialects import request as shared
from handler.jobs import Health, Job, OpenApi, Page
from handler.sources.http import PUBLIC_ROUTES, routes
from handler.telemetry import PHASES

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}
_STATUSES = {
    400: "Invalid request; `param` is the field.",
    401: "The API key is missing or invalid.",
    404: "The model does not exist.",
    413: "The body is too large.",
    415: "The content type or content coding is not supported.",
    422: "The request exceeds the model's context or a limit of the settings.",
    429: "Too many requests are in progress.",
    500: "Internal error.",
    503: "The model is not available.",
}
_OPENAI_STATUSES = {status: text for status, text in _STATUSES.items() if status != 422}
_LIST_STATUSES = (401, 404, 500)
_OPENAI_ERROR: Schema = {"$ref": "#/components/schemas/OpenAIError"}


def document() -> Schema:
    """The document, with all routes.

    Raises:
        KeyError: a field or a route has no description in this module.
    """
    paths: Schema = {}
    for route, names in routes().items():
        below = len(route) > 1 and route.endswith("/")
        path: Schema = {}
        if below:
            path["parameters"] = [
                {"name": "id", "in": "path", "required": True, "schema": _TEXT,
                 "description": "May contain /, encoded as %2F."}
            ]  # fmt: skip
        for name in names:
            kind = PUBLIC_ROUTES.get(route) if name != "POST" else None
            path[name.lower()] = _operation(route, name, kind)
        paths[f"{route}{{id}}" if below else route] = path
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
            "schemas": _schemas(),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer",
                        "description": "The value of GPT2_API_KEY, if it is set."}
            },
        },
        "security": [{"key": []}, {}],
    }  # fmt: skip


def _operation(route: str, method: str, kind: type[Job] | None) -> Schema:
    """An operation; `kind` is the job of a route in `PUBLIC_ROUTES`, else None."""
    if kind is not None:
        described: dict[type[Job], tuple[str, dict[str, str | None]]] = {
            Health: (
                "Check that the function responds, without opening the model",
                {"application/json": "Health"},
            ),
            Page: ("The web page", {"text/html": None}),
            OpenApi: ("This document", {"application/json": None}),
        }
        summary, content = described[kind]
        reply = (
            _reply(content) if method == "GET" else {"description": "The headers without the body."}
        )
        return {"summary": summary, "security": [], "responses": {"200": reply}}
    if route == f"{openai.MODELS}/":
        return _reading("Look up a model", "Model")
    if route == openai.MODELS:
        return _reading("List the models, without opening them", "Models")
    if route == "/v1/chat/completions":
        chat = {"required": True, "content": {"application/json": {"schema": _OBJECT}}}
        errors = _errors(dict.fromkeys((400, 401, 413, 415, 500), "")) | {
            "404": {"description": "Chat completions are not supported: GPT-2 continues text.",
                    "content": {"application/json": {"schema": _OPENAI_ERROR}}}
        }  # fmt: skip
        return {"summary": "Not supported", "deprecated": True, "requestBody": chat,
                "responses": errors}  # fmt: skip
    if route == openai.COMPLETIONS:
        return _generating("Continue prompts (OpenAI completions)", _ref("CompletionRequest"),
                           _ref("Completion"), _OPENAI_STATUSES, _OPENAI_ERROR)  # fmt: skip
    if route not in native.DIALECT.routes:
        raise KeyError(f"{method} {route}: add it to _operation in handler/openapi.py")
    return _generating(
        "Continue prompts",
        {"anyOf": [_ref("NativeRequest"), _ref("HuggingFaceRequest")]},
        {"anyOf": [_ref("NativeReply"), _ref("NativeReplies"), _ref("HuggingFaceReply")]},
        {status: text for status, text in _STATUSES.items() if status != 404},
        {"anyOf": [_ref("Error"), _ref("HuggingFaceError")]},
    )


def _generating(
    summary: str, request: Schema, reply: Schema, statuses: Mapping[int, str], error: Schema
) -> Schema:
    done = {
        "description": "The continuation; server-sent events if `stream` is true.",
        "content": {
            "application/json": {"schema": reply},
            "text/event-stream": {},
        },
    }
    body = {"required": True, "content": {"application/json": {"schema": request}}}
    responses = {"200": done} | _errors(statuses, error)
    return {"summary": summary, "requestBody": body, "responses": responses}


def _reading(summary: str, schema: str) -> Schema:
    responses = {"200": _reply({"application/json": schema})} | _errors(
        {status: _STATUSES[status] for status in _LIST_STATUSES}
    )
    return {"summary": summary, "responses": responses}


def _reply(content: Mapping[str, str | None]) -> Schema:
    schemas = {
        kind: {"schema": _ref(name)} if name else {"schema": _OBJECT if "json" in kind else _TEXT}
        for kind, name in content.items()
    }
    return {"description": "Success.", "content": schemas}


def _errors(statuses: Mapping[int, str], error: Schema = _OPENAI_ERROR) -> Schema:
    content = {"application/json": {"schema": error}}
    return {
        str(status): {"description": text or _STATUSES[status], "content": content}
        for status, text in statuses.items()
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Schema) -> Schema:
    """The schema or null, which counts as a missing field."""
    if "type" in schema:
        kind = schema["type"]
        return schema | {"type": [*(kind if isinstance(kind, list) else [kind]), "null"]}
    return {"anyOf": [*schema["anyOf"], {"type": "null"}]}


def _list(item: Schema, most: int = shared.MAX_PROMPTS) -> Schema:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": most}


def _fields() -> dict[str, Schema]:
    """The schemas of all request fields except the prompts."""
    stop = {"type": "string", "minLength": 1, "maxLength": shared.MAX_STOP_CHARACTERS}
    choices = {"type": "integer", "minimum": 1, "maximum": shared.MAX_PROMPTS}
    sampling: dict[str, Schema] = {
        name: {"type": "integer" if kind is int else "number", "minimum": least, "maximum": most}
        for name, (kind, least, most) in RANGES.items()
    }
    return sampling | {
        "max_new_tokens": _COUNT,
        "max_tokens": _COUNT | {"default": openai.DEFAULT_NEW_TOKENS},
        "stop": {
            "anyOf": [stop, {"type": "array", "items": stop, "maxItems": shared.MAX_STOPS}]
        },
        "logit_bias": {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
            "maxProperties": shared.MAX_BIASES,
        },
        "logprobs": {"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS},
        "n": choices,
        "best_of": choices | {"description": "Must be equal to n."},
        "model": _TEXT,
        "user": _TEXT,
        "stream_options": {
            "type": "object",
            "properties": {"include_usage": _or_null(_FLAG)},
            "additionalProperties": False,
        },
        "options": _OBJECT,
        **dict.fromkeys(
            ("return_full_text", "stream", "details", "do_sample", "allow_special", "echo"), _FLAG
        ),
    }  # fmt: skip


def _request(prompt: str, schema: Schema, names: Iterable[str], **other: Schema) -> Schema:
    """An object with only these fields; the prompt is required."""
    known = _fields()
    properties = {
        name: other[name] if name in other else _or_null(known[name])
        for name in names
        if name != prompt
    }
    return {
        "type": "object",
        "properties": {prompt: schema, **properties},
        "required": [prompt],
        "additionalProperties": False,
    }


def _object(**properties: Schema) -> Schema:
    """An object with these properties, all required."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _schemas() -> dict[str, Schema]:
    texts: Schema = {"anyOf": [_TEXT, _list(_TEXT)]}
    ids = _list(_COUNT, 2**31)
    usage = _object(prompt_tokens=_COUNT, completion_tokens=_COUNT)
    item = {
        "generated_text": _TEXT,
        "finish_reason": {"enum": ["length", "stop", "eos", "deadline"]},
        "usage": usage,
    }
    report = {
        "timings_ms": _object(**{name: {"type": "number", "minimum": 0} for name in PHASES}),
        "cold_start": _FLAG,
        "model": _or_null(_TEXT),
        "model_source": _or_null(_TEXT),
    }
    parameters = _request("", {}, huggingface.PARAMETERS)
    neutral: dict[str, Schema] = {
        name: {"enum": [*values, None]} for name, values in huggingface.NEUTRAL.items()
    }
    model = _object(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT)
    choice = _object(
        text=_TEXT,
        index=_COUNT,
        logprobs={"type": ["object", "null"]},
        finish_reason={"enum": ["length", "stop"]},
    )
    param = _or_null(_TEXT)
    return {
        "NativeRequest": _request("prompt", texts, native.FIELDS, id={}),
        "NativeReply": _object(**item, **report),
        "NativeReplies": _object(generations={"type": "array", "items": _object(**item)}, **report),
        "HuggingFaceRequest": _request(
            "inputs",
            texts,
            huggingface.FIELDS,
            parameters={
                "type": ["object", "null"],
                "properties": {k: v for k, v in parameters["properties"].items() if k} | neutral,
                "additionalProperties": False,
            },
        ),
        "HuggingFaceReply": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"generated_text": _TEXT, "details": _OBJECT},
                "required": ["generated_text"],
            },
        },
        "CompletionRequest": _request(
            "prompt", {"anyOf": [_TEXT, _list(_TEXT), ids, _list(ids)]}, openai.FIELDS
        ),
        "Completion": _object(
            id=_TEXT,
            object={"const": "text_completion"},
            created=_COUNT,
            model=_TEXT,
            choices={"type": "array", "items": choice},
            usage=_object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT),
        ),
        "Model": model,
        "Models": _object(object={"const": "list"}, data={"type": "array", "items": _ref("Model")}),
        "Health": _object(status={"const": "ok"}, **report),
        "Error": _object(error=_object(type=_TEXT, message=_TEXT, param=param)),
        "HuggingFaceError": _object(
            error=_TEXT, error_type={"enum": ["validation", "overloaded", "generation"]}
        ),
        "OpenAIError": _object(
            error=_object(message=_TEXT, type=_TEXT, param=param, code=_or_null(_TEXT))
        ),
    }
