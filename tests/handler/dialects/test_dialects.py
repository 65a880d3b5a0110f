"""The fields of requests in each dialect, and how to add a dialect."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2core.errors import GPT2Error
from gpt2core.sampling import Sampling
from handler import dialects
from handler.app import Function
from handler.dialects import parse_request
from handler.dialects.huggingface import DIALECT as HUGGING_FACE
from handler.dialects.native import DIALECT as NATIVE
from handler.dialects.request import (
    Dialect,
    EventStream,
    Request,
    parse_json,
    sampling_of,
    stream_flag,
)
from handler.errors import BadRequest, LimitExceeded
from handler.settings import Settings
from tests.support.events import http_event, load_event, payload


def test_the_fields_determine_the_dialect() -> None:
    assert parse_request({"prompt": "x"}).dialect is NATIVE
    assert parse_request({"inputs": "x"}).dialect is HUGGING_FACE


def test_null_counts_as_a_missing_field() -> None:
    found = parse_request(
        {"prompt": "x", "max_new_tokens": None, "stop": None, "id": None, "return_full_text": None}
    )
    assert found == Request(NATIVE, ("x",))


def test_results_have_the_order_of_the_prompts() -> None:
    found = parse_request(load_event("direct-prompts"))
    assert (len(found.prompts), found.is_list) == (2, True)
    assert list(found.prompts) == load_event("direct-prompts")["prompt"]


@pytest.mark.parametrize("name", ["typical_p", "top_n_tokens", "truncate"])
def test_unsupported_fields_are_rejected_with_advice(name: str) -> None:
    with pytest.raises(BadRequest, match=f"{name} is not supported"):
        parse_request({"inputs": "x", "parameters": {name: 1}})
    assert parse_request({"inputs": "x", "parameters": {name: None}}).prompts == ("x",)


def test_neutral_values_of_sampling_parameters_are_accepted() -> None:
    neutral = {"do_sample": False, "repetition_penalty": 1.0, "num_return_sequences": 1}
    fields = {"inputs": "x", "parameters": neutral, "options": {"use_cache": True}}
    assert parse_request(fields).prompts == ("x",)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"max_new_tokens": 5}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["x", 5]}, "prompt[1]"),
        ({"prompt": "x", "inputs": "y"}, "prompt"),
        ({"prompt": "x", "max_new_tokens": -1}, "max_new_tokens"),
        ({"prompt": "x", "max_new_tokens": 1.0}, "max_new_tokens"),
        ({"prompt": "x", "max_new_tokens": "5"}, "max_new_tokens"),
        ({"prompt": "x", "max_new_tokens": True}, "max_new_tokens"),
        ({"prompt": "x", "stop": ""}, "stop"),
        ({"prompt": "x", "stop": [""]}, "stop"),
        ({"prompt": "x", "stop": {"a": 1}}, "stop"),
        ({"prompt": "x", "return_full_text": "yes"}, "return_full_text"),
        ({"prompt": ["x"], "stream": True}, "stream"),
        ({"prompt": "x", "stream": 1}, "stream"),
        ({"prompt": "x", "id": "\ud800"}, "id"),
        ({"prompt": "x", "num_beams": 5}, "num_beams"),
        ({"prompt": "x", "do_sample": True}, "do_sample"),
        ({"prompt": "x", "temperature": -0.5}, "temperature"),
        ({"prompt": "x", "temperature": "1"}, "temperature"),
        ({"prompt": "x", "top_p": 1.5}, "top_p"),
        ({"prompt": "x", "top_k": 1.5}, "top_k"),
        ({"prompt": "x", "seed": 2**64}, "seed"),
        ({"prompt": "x", "logit_bias": [1]}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"5": True}}, "logit_bias"),
        ({"prompt": "x", "m\ud800": 1}, "m\\ud800"),
        ({"inputs": 5}, "inputs"),
        ({"inputs": ["x", "y"], "stream": True}, "stream"),
        ({"inputs": "x", "parameters": []}, "parameters"),
        ({"inputs": "x", "options": 5}, "options"),
        ({"inputs": "x", "model": "gpt2"}, "model"),
        ({"inputs": "x", "parameters": {"max_new_tokens": "5"}}, "parameters.max_new_tokens"),
        ({"inputs": "x", "parameters": {"stop": [5]}}, "parameters.stop"),
        ({"inputs": "x", "parameters": {"do_sample": 1}}, "parameters.do_sample"),
        ({"inputs": "x", "parameters": {"top_k": -5}}, "parameters.top_k"),
        ({"inputs": "x", "parameters": {"best_of": 2}}, "parameters.best_of"),
        ({"inputs": "x", "parameters": {"details": "yes"}}, "parameters.details"),
        ({"inputs": "x", "parameters": {"truncate": 5}}, "parameters.truncate"),
        ({"inputs": "x", "parameters": {"num_beams": 5}}, "parameters.num_beams"),
        ({"inputs": "x", "parameters": {"logit_bias": {"a": 1}}}, "parameters.logit_bias"),
        ({"inputs": "x", "parameters": {"logit_bias": {"5": 1e9}}}, "parameters.logit_bias"),
    ],
)
def test_an_invalid_field_is_rejected_by_name(given: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request(given)
    assert caught.value.param == param
    assert caught.value.message.isascii()
    if param.startswith("parameters."):
        assert param in caught.value.message


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": ["x"] * 129},
        {"prompt": "x", "stop": ["x"] * 65},
        {"prompt": "x", "stop": "x" * 257},
        {"prompt": "x", "logit_bias": {str(i): 1 for i in range(1025)}},
    ],
)
def test_too_many_prompts_and_too_many_or_long_stops_are_rejected(given: dict[str, Any]) -> None:
    with pytest.raises(LimitExceeded, match="limit"):
        parse_request(given)


def test_a_dialect_can_have_other_names_of_sampling_fields() -> None:
    names = {"repetition_penalty": "repeat_penalty"}
    found = sampling_of({"repeat_penalty": 1.5, "top_k": 3}, "options.", names)
    assert found == (Sampling(repetition_penalty=1.5, top_k=3), False)
    with pytest.raises(BadRequest, match=r"^options\.repeat_penalty is -1, not ") as caught:
        sampling_of({"repeat_penalty": -1}, "options.", names)
    assert caught.value.param == "options.repeat_penalty"


def test_whether_a_seed_is_set_does_not_depend_on_its_value() -> None:
    assert sampling_of({"seed": 0}) == (Sampling(), True)
    assert sampling_of({"seed": None}) == (None, False)


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (5, "stop is 5, not a non-empty string or a list of them"),
        (["a", ""], "stop[1] is '', not a non-empty string"),
        (["a", "b", "x" * 300], "stop[2] has 300 characters; the limit is 256"),
    ],
)
def test_an_invalid_stop_string_is_named_by_its_index(stop: Any, message: str) -> None:
    with pytest.raises(GPT2Error) as caught:
        parse_request({"prompt": "x", "stop": stop})
    assert (caught.value.message, caught.value.param) == (message, "stop")


@pytest.mark.parametrize("text", ["{'prompt': \"x\"}", "{\"prompt\": 'x'}"])
def test_an_error_in_json_with_single_quotes_names_the_fix(text: str) -> None:
    with pytest.raises(BadRequest, match=r"use double quotes, not single ones$"):
        parse_json(text, "the body")
    with pytest.raises(BadRequest, match=r"\(char 11\)$"):
        parse_json('{"prompt": x}', "the body")


def test_a_dialect_can_stream_by_default() -> None:
    assert stream_flag({}, False, "prompt", default=True)
    assert not stream_flag({"stream": False}, True, "prompt", default=True)


def test_without_sampling_fields_decoding_is_greedy() -> None:
    assert parse_request({"prompt": "x"}).sampling is None
    assert parse_request({"inputs": "x", "parameters": {"do_sample": False}}).sampling is None


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.5}, 0.5),
        ({"temperature": 0.5}, 0.5),
        ({"do_sample": False, "temperature": 0.5}, 0.5),
        ({"temperature": 1.0}, 0.0),
        ({"temperature": 1.0, "do_sample": True}, 1.0),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.9}, 1.0),
        ({"top_p": 1.0}, 0.0),
        ({"seed": 5}, 0.0),
        ({"repetition_penalty": 1.2}, 0.0),
    ],
)
def test_tokens_are_sampled_in_the_same_cases_as_by_hugging_faces_servers(
    parameters: dict[str, Any], temperature: float
) -> None:
    """text-generation-inference, `NextTokenChooser`: `do_sample`, or a warper with an effect."""
    sampling = parse_request({"inputs": "x", "parameters": parameters}).sampling
    assert sampling
    assert sampling.temperature == temperature


SAMPLED = {"prompt": "abc", "max_new_tokens": 20, "temperature": 1.0}


def test_the_seed_determines_the_text_and_is_reported(model_dir: Any) -> None:
    function = Function(Settings(model_dir=str(model_dir)))
    first = function.invoke(SAMPLED)
    again = function.invoke(SAMPLED | {"seed": first["seed"]})
    assert again["generated_text"] == first["generated_text"]
    assert again["seed"] == first["seed"]
    assert function.invoke(SAMPLED)["seed"] != first["seed"]
    assert "seed" not in function.invoke({"prompt": "abc", "repetition_penalty": 1.2})


def test_prompts_of_a_request_are_sampled_independently(model_dir: Any) -> None:
    function = Function(Settings(model_dir=str(model_dir)))
    body = function.invoke(SAMPLED | {"prompt": ["abc", "abc"], "seed": 1})
    texts = [item["generated_text"] for item in body["generations"]]
    assert texts[0] != texts[1]
    assert texts[0] == function.invoke(SAMPLED | {"seed": 1})["generated_text"]


def test_hugging_face_details_include_the_seed(model_dir: Any) -> None:
    function = Function(Settings(model_dir=str(model_dir)))
    parameters = {"do_sample": True, "seed": 7, "details": True, "max_new_tokens": 5}
    (item,) = function.invoke({"inputs": "abc", "parameters": parameters})
    assert item["details"]["seed"] == 7


def test_a_form_can_set_sampling_fields(model_dir: Any) -> None:
    function = Function(Settings(model_dir=str(model_dir)))
    form = "prompt=abc&temperature=0.7&top_k=5&seed=-3&max_new_tokens=5"
    reply = payload(
        function.invoke(
            http_event(form, headers={"content-type": "application/x-www-form-urlencoded"})
        )
    )
    assert reply["seed"] == -3


def test_text_fields_of_a_form_are_strings_and_other_values_are_converted() -> None:
    form = {"prompt": ["5"], "id": ["7"], "top_p": ["0.5"], "stream": ["true"], "stop": ["1", "2"]}
    assert NATIVE.from_form(form) == {
        "prompt": "5", "id": "7", "top_p": 0.5, "stream": True, "stop": ["1", "2"],
    }  # fmt: skip
    form = {"inputs": ["true"], "watermark": ["false"], "max_new_tokens": ["1x"]}
    assert HUGGING_FACE.from_form(form) == {
        "inputs": "true",
        "parameters": {"watermark": False, "max_new_tokens": "1x"},
    }


def test_a_bias_for_an_unknown_token_is_rejected(model_dir: Any) -> None:
    function = Function(Settings(model_dir=str(model_dir)))
    reply = function.invoke({"inputs": "a", "parameters": {"logit_bias": {"257": 1}}})
    assert reply["error_type"] == "validation"
    assert reply["error"].startswith("parameters.logit_bias: token id 257 ")


class JsonLines(EventStream):
    """A stream of JSON lines."""

    content_type = "application/x-ndjson"

    def frame(self, data: str) -> str:
        return f"{data}\n"


class Acme(Dialect):
    """A dialect with its own path, fields, stream format and errors."""

    routes = {"/v1/acme": ("POST",)}  # noqa: RUF012
    stream_class = JsonLines
    text_fields = ("message",)

    def recognizes(self, fields: Any) -> bool:
        return "message" in fields

    def parse(self, fields: Any) -> Request:
        stream = fields.get("stream", False)
        return Request(self, (fields["message"],), max_new_tokens=2, stream=stream)

    def param(self, name: str) -> str:
        return {"prompt": "message"}.get(name, name)

    def render(self, request: Any, completions: Any, report: Any) -> dict[str, Any]:
        return {"text": completions[0].text}

    def events(self, request: Any, pieces: Any, report: Any) -> Any:
        for piece in pieces:
            yield {"text": "".join(token.text for token in piece.tokens)}
        yield {"done": True}

    def error_event(self, error: Any) -> Any:
        return {"message": error.message}

    def render_error(self, error: Any) -> tuple[int, Any]:
        return 418, self.error_event(error)


@pytest.fixture
def with_acme(model_dir: Any, monkeypatch: pytest.MonkeyPatch) -> Function:
    """A function to which the dialect has been added as one module and its name."""
    module = SimpleNamespace(DIALECT=Acme())
    monkeypatch.setitem(sys.modules, "handler.dialects.acme", module)  # type: ignore[arg-type]
    monkeypatch.setattr(dialects, "NAMES", (*dialects.NAMES, "acme"))
    return Function(Settings(model_dir=str(model_dir)))


def test_a_new_dialect_needs_one_module_and_its_name(with_acme: Function) -> None:
    function = with_acme
    reply = function.invoke(http_event(path="/v1/acme", message="abc"))
    assert (reply["statusCode"], list(payload(reply))) == (200, ["text"])
    assert list(function.invoke({"message": "abc"})) == ["text"]
    streamed = function.invoke(http_event(path="/v1/acme", message="abc", stream=True))
    assert streamed["headers"]["Content-Type"] == "application/x-ndjson"
    *lines, last = [json.loads(line) for line in streamed["body"].splitlines()]
    assert "".join(line["text"] for line in lines) == payload(reply)["text"]
    assert last == {"done": True}
    # The route selects the dialect until the fields are known.
    for event in (
        http_event("{", path="/v1/acme"),
        http_event(path="/v1/acme", message="a" * 99),
    ):
        rejected = function.invoke(event)
        assert (rejected["statusCode"], list(payload(rejected))) == (418, ["message"])
    assert function.invoke(http_event(prompt="abc"))["statusCode"] == 200


def test_a_form_in_a_new_dialect_is_converted_to_its_types(with_acme: Function) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    event = http_event("message=5&stream=true", path="/v1/acme", headers=form)
    reply = with_acme.invoke(event)
    assert reply["headers"]["Content-Type"] == "application/x-ndjson"


def test_the_openapi_document_has_the_route_of_a_new_dialect(
    with_acme: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    def operation() -> Any:
        reply = with_acme.invoke(http_event(path="/openapi.json", method="GET"))
        return payload(reply)["paths"]["/v1/acme"]["post"]

    found = operation()  # without a description, any object
    assert found["responses"].keys() == {"200", "418"}
    assert found["responses"]["200"]["content"].keys() == {
        "application/json",
        "application/x-ndjson",
    }
    described = {"summary": "Talk", "request": {"type": "object"}}
    monkeypatch.setattr(Acme, "describe", lambda self: described)
    content = operation()["requestBody"]["content"]["application/json"]
    assert (operation()["summary"], content["schema"]) == (
        "Talk",
        {"$ref": "#/components/schemas/AcmeRequest"},
    )
