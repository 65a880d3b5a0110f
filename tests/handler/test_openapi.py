"""`GET /openapi.json`: the document matches the function."""

import json
from typing import Any

import pytest

from handler.app import Function
from handler.dialects import huggingface, native, openai
from handler.dialects.request import Dialect
from handler.errors import BadRequest
from handler.openapi import document
from handler.settings import Secret, Settings
from handler.sources.http import routes
from tests.support.dialects import SUPPORTED, name_of, request_of
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


def test_every_request_field_is_described() -> None:
    assert properties("NativeRequest") == set(native.FIELDS)
    assert properties("HuggingFaceRequest") == set(huggingface.FIELDS)
    assert properties("OpenAIRequest") == set(openai.FIELDS)
    parameters = SCHEMAS["HuggingFaceRequest"]["properties"]["parameters"]["properties"]
    assert set(parameters) == {*huggingface.PARAMETERS, *huggingface.NEUTRAL}


@pytest.mark.parametrize("dialect", SUPPORTED, ids=name_of)
def test_the_described_fields_are_those_that_a_dialect_knows(dialect: Dialect) -> None:
    with pytest.raises(BadRequest, match=r"^unknown field 'zzz'") as caught:
        dialect.parse(request_of(dialect, "x", 1, zzz=1))
    known = caught.value.message.partition("known fields: ")[2].split(", ")
    assert set(dialect.describe()["request"]["properties"]) == set(known)


def test_the_default_of_a_field_is_that_of_its_dialect() -> None:
    assert SCHEMAS["OpenAIRequest"]["properties"]["max_tokens"]["default"] == 16
    assert "default" not in SCHEMAS["NativeRequest"]["properties"]["max_new_tokens"]


def test_only_statuses_that_a_dialect_replies_with_are_described() -> None:
    paths = document()["paths"]
    assert "422" in paths["/generate"]["post"]["responses"]
    assert "404" not in paths["/generate"]["post"]["responses"]
    completions = paths["/v1/completions"]["post"]["responses"]
    assert "404" in completions  # a model that is not served
    assert "422" not in completions


def test_every_reference_has_a_schema() -> None:
    text = json.dumps(document())
    names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names <= set(SCHEMAS)
    assert names == set(SCHEMAS)


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
    assert not {"handler.openapi", "handler.dialects.schemas"} & set(loaded)
