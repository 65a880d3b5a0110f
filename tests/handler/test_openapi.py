"""`GET /openapi.json`: the document matches the function."""

import json
from typing import Any

import pytest

from handler.app import Function
from handler.dialects import huggingface, native, openai
from handler.openapi import document
from handler.settings import Secret, Settings
from handler.sources.http import routes
from tests.support.events import http_event
from tests.support.fresh_process import modules_after

SCHEMAS = document()["components"]["schemas"]


def properties(schema: str) -> set[str]:
    return set(SCHEMAS[schema]["properties"])


def get(path: str, method: str = "GET", **settings: Any) -> Any:
    return Function(Settings(**settings)).invoke(http_event(path=path, method=method))


def test_the_document_is_served_without_a_key() -> None:
    reply = get("/openapi.json", api_key=Secret("secret"))
    assert reply["statusCode"] == 200
    assert reply["headers"]["Content-Type"] == "application/json"
    assert json.loads(reply["body"]) == document()


def test_every_route_is_described_with_its_methods() -> None:
    described = {
        path.replace("{id}", ""): {m.upper() for m in operations if m != "parameters"}
        for path, operations in document()["paths"].items()
    }
    assert described == {path: set(methods) for path, methods in routes().items()}


def test_a_route_without_a_description_is_an_error_that_says_where_to_add_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai.OpenAI, "routes", {"/v1/new": ("POST",)})
    with pytest.raises(KeyError, match=r"POST /v1/new: add it to _operation in handler/openapi.py"):
        document()


def test_every_request_field_is_described() -> None:
    assert properties("NativeRequest") == set(native.FIELDS)
    assert properties("HuggingFaceRequest") == set(huggingface.FIELDS)
    assert properties("CompletionRequest") == set(openai.FIELDS)
    parameters = SCHEMAS["HuggingFaceRequest"]["properties"]["parameters"]["properties"]
    assert set(parameters) == {*huggingface.PARAMETERS, *huggingface.NEUTRAL}


def test_every_reference_has_a_schema() -> None:
    text = json.dumps(document())
    names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names <= set(SCHEMAS)
    assert names | {"NativeReplies"} == set(SCHEMAS)


@pytest.mark.parametrize("path", [*sorted(set(routes()) - {"/v1/models/"}), "/v1/models/demo"])
@pytest.mark.parametrize("method", ["TRACE", "FOO", "PUT", "DELETE", "CONNECT"])
def test_every_unsupported_method_is_a_405_with_allow(path: str, method: str) -> None:
    reply = get(path, method)
    known = routes().get(path, routes()["/v1/models/"])
    assert (reply["statusCode"], reply["headers"]["Allow"]) == (405, ", ".join(known))


def test_the_document_is_imported_only_on_request() -> None:
    loaded = modules_after(
        "from handler.app import lambda_handler\n"
        "assert lambda_handler(json.load(open('events/url-health.json')))['statusCode'] == 200"
    )
    assert "handler.openapi" not in loaded
