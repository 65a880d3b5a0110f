"""OpenAI's completions and models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2core import Engine
from handler.app import Function
from handler.completions import Completion, ScoredToken
from handler.dialects.openai import DIALECT, FIELDS, models
from handler.dialects.request import Request
from handler.errors import ModelNotServed
from handler.settings import Settings
from tests.conftest import DEMO
from tests.support.events import http_event, payload
from tests.support.models import script_for, write_scripted_model

Post = Callable[..., Any]
PATH = "/v1/completions"


@pytest.fixture(scope="module")
def function() -> Function:
    return Function(Settings(model_dir=str(DEMO)))


@pytest.fixture
def post(function: Function) -> Post:
    """Send fields to /v1/completions; returns status and body."""

    def send(**fields: Any) -> Any:
        reply = function.invoke(http_event(path=PATH, **fields))
        return reply["statusCode"], payload(reply)

    return send


def texts(body: Any) -> list[str]:
    return [choice["text"] for choice in body["choices"]]


def test_a_completion_has_the_text_of_the_engine(post: Post, demo: Engine) -> None:
    status, body = post(prompt="Once upon a time", max_tokens=8, user="u", top_p=1, n=1)
    assert status == 200
    alone = demo.generate("Once upon a time", 8)
    (choice,) = body["choices"]
    assert choice == {
        "text": alone.text, "index": 0, "logprobs": None, "finish_reason": "length",
    }  # fmt: skip
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}
    assert (body["object"], body["id"][:5], body["model"]) == ("text_completion", "cmpl-", "demo")


def test_max_tokens_is_16_by_default(post: Post) -> None:
    assert post(prompt="The fox")[1]["usage"]["completion_tokens"] == 16
    assert post(prompt="The fox", max_tokens=None)[1]["usage"]["completion_tokens"] == 16


def test_prompts_may_be_texts_or_ids_one_or_many(post: Post, demo: Engine) -> None:
    one, other = demo.encode_prompt("The fox"), demo.encode_prompt("A king")
    expected = [demo.generate(ids, 5).text for ids in (one, other)]
    assert texts(post(prompt=["The fox", "A king"], max_tokens=5)[1]) == expected
    assert texts(post(prompt=[one, other], max_tokens=5)[1]) == expected
    assert texts(post(prompt=one, max_tokens=5)[1]) == expected[:1]
    assert texts(post(prompt=one, max_tokens=5, echo=True)[1]) == ["The fox" + expected[0]]


def test_choices_are_numbered_across_prompts_and_differ(post: Post) -> None:
    request_fields = {
        "prompt": ["The fox", "A king"],
        "n": 3,
        "best_of": 3,
        "temperature": 1,
        "seed": 5,
    }
    body = post(**request_fields, max_tokens=12)[1]
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert len(set(texts(body))) == 6
    assert texts(post(**request_fields, max_tokens=12)[1]) == texts(body)
    assert body["usage"]["prompt_tokens"] == post(prompt=["The fox", "A king"])[1]["usage"][
        "prompt_tokens"]  # fmt: skip


def test_more_than_four_stop_strings_are_accepted(post: Post) -> None:
    body = post(prompt="Once upon a time", max_tokens=30, stop=["king", "man", "x", "y", "z"])[1]
    assert body["choices"][0]["finish_reason"] == "stop"
    assert "man" not in body["choices"][0]["text"]


def test_the_end_of_text_token_has_finish_reason_stop_and_a_logprob(tmp_path: Path) -> None:
    write_scripted_model(tmp_path, [*script_for("x", b"ab"), 256])
    function = Function(Settings(model_dir=str(tmp_path)))
    body = payload(function.invoke(http_event(path=PATH, prompt="x", logprobs=0)))
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")
    assert choice["logprobs"]["tokens"] == ["a", "b", "<|endoftext|>"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]


def test_logprobs_of_prompt_and_text_agree_with_the_logits(post: Post, demo: Engine) -> None:
    request_fields = {"prompt": "Once upon a time", "max_tokens": 3, "echo": True, "logprobs": 1}
    (choice,) = post(**request_fields)[1]["choices"]
    found = choice["logprobs"]
    ids = demo.encode_prompt(choice["text"])
    rows = demo.logits(ids).astype(np.float64)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    expected = rows[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(found["token_logprobs"][1:], expected, atol=1e-4)
    for row, top in zip(rows, found["top_logprobs"][1:], strict=False):
        assert max(top.values()) == pytest.approx(row.max(), abs=1e-4)
    assert "".join(found["tokens"]) == choice["text"]
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)


def test_a_prompt_can_be_scored_without_new_tokens(post: Post) -> None:
    status, body = post(prompt="The fox", max_tokens=0, echo=True, logprobs=0)
    assert (status, texts(body)) == (200, ["The fox"])
    assert len(body["choices"][0]["logprobs"]["tokens"]) == body["usage"]["prompt_tokens"]


def rendered(*tokens: ScoredToken, text: str) -> Any:
    from handler.telemetry import Report

    request = Request(DIALECT, ("x",), logprobs=2)
    completion = Completion("x", text, [1] * len(tokens), 1, "length", tokens=tokens)
    return DIALECT.render(request, [completion], Report({}, False, "m"))["choices"][0]["logprobs"]


def test_tokens_with_the_same_text_keep_the_highest_logprob() -> None:
    token = ScoredToken(b"a", True, -3.0, ((b"a", -1.0), (b"b", -2.0), (b"b", -2.5)))
    assert rendered(token, text="a")["top_logprobs"] == [{"a": -1.0, "b": -2.0}]


def test_incomplete_characters_are_reported_as_bytes() -> None:
    parts = [ScoredToken(piece, True, -1.0) for piece in (b"a", b"\xc3", b"\xa9z", b"b")]
    found = rendered(*parts, text="aézb")
    assert found["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9\\x7a", "b"]
    assert found["text_offset"] == [0, 1, 1, 3]


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"max_tokens": 5}, 400, "prompt", None),
        ({"prompt": None}, 400, "prompt", None),
        ({"prompt": []}, 400, "prompt", None),
        ({"prompt": [[1], []]}, 400, "prompt[1]", None),
        ({"prompt": [1, "x"]}, 400, "prompt", None),
        ({"prompt": [[1], "x"]}, 400, "prompt[1]", None),
        ({"prompt": [2048]}, 400, "prompt", None),
        ({"prompt": [True]}, 400, "prompt[0]", None),
        ({"prompt": "x", "suffix": "y"}, 400, "suffix", None),
        ({"prompt": "x", "max_new_tokens": 5}, 400, "max_new_tokens", None),
        ({"prompt": "x", "max_tokens": -1}, 400, "max_tokens", None),
        ({"prompt": "x", "max_tokens": 513}, 400, "max_tokens", "context_length_exceeded"),
        ({"prompt": "a b " * 600}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": [1] * 513}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": "x", "logprobs": 6}, 400, "logprobs", None),
        ({"prompt": "x", "logprobs": True}, 400, "logprobs", None),
        ({"prompt": "x", "n": 0}, 400, "n", None),
        ({"prompt": ["x"] * 100, "n": 2}, 400, "n", None),
        ({"prompt": "x", "n": 2, "best_of": 3}, 400, "best_of", None),
        ({"prompt": "x", "temperature": -1}, 400, "temperature", None),
        ({"prompt": "x", "logit_bias": {"2048": 1}}, 400, "logit_bias", None),
        ({"prompt": "x", "user": 5}, 400, "user", None),
        ({"prompt": "x", "stream": "yes"}, 400, "stream", None),
        ({"prompt": "x", "stream_options": {"include_usage": True}}, 400, "stream_options", None),
        (
            {"prompt": "x", "stream": True, "stream_options": {"a": 1}},
            400,
            "stream_options.a",
            None,
        ),
        (
            {"prompt": "x", "stream": True, "stream_options": {"include_usage": 1}},
            400,
            "stream_options.include_usage",
            None,
        ),
        ({"prompt": "x", "stop": [""]}, 400, "stop", None),
        ({"prompt": "x", "model": "gpt-4"}, 404, "model", "model_not_found"),
    ],
)
def test_errors_have_openais_format(
    post: Post, fields: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    found, body = post(**fields)
    assert (found, body["error"]["param"], body["error"]["code"]) == (status, param, code)
    assert body["error"]["type"] == "invalid_request_error"
    assert list(body) == ["error"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (5, "prompt is 5, not a string or a list of strings"),
        ([1, "x"], "prompt[1] is 'x', not a token id"),
        ([[1], []], "prompt[1] is an empty list: send at least one token id"),
        ([[1], "x"], "prompt[1] is 'x', not a list of token ids"),
    ],
)
def test_an_invalid_prompt_is_named_by_its_index(post: Post, prompt: Any, message: str) -> None:
    assert post(prompt=prompt)[1]["error"]["message"] == message


def test_invalid_json_is_an_error_in_openais_format(function: Function) -> None:
    reply = function.invoke(http_event("{", path=PATH))
    assert (reply["statusCode"], payload(reply)["error"]["type"]) == (400, "invalid_request_error")


def events(reply: Any) -> list[Any]:
    """The data of the events of a stream, whose last is [DONE]."""
    assert reply["headers"]["Content-Type"].startswith("text/event-stream")
    *found, rest = reply["body"].split("\n\n")
    assert rest == ""
    assert found.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in found]


def joined(chunks: list[Any]) -> list[Any]:
    """The choices of a stream, joined from its chunks."""
    found: dict[int, Any] = {}
    for (part,) in (chunk["choices"] for chunk in chunks if chunk["choices"]):
        if part["index"] not in found:
            found[part["index"]] = part
            continue
        choice = found[part["index"]]
        assert choice["finish_reason"] is None
        choice["finish_reason"] = part["finish_reason"]
        choice["text"] += part["text"]
        for name, values in (part["logprobs"] or {}).items():
            choice["logprobs"][name] += values
    return [found[i] for i in sorted(found)]


@pytest.mark.parametrize(
    "request_fields",
    [
        {"prompt": "The fox", "logprobs": 2},
        {"prompt": "The fox", "echo": True},
        {"prompt": [3, 4, 5], "echo": True},
        {"prompt": ["One day", "é"], "n": 2, "seed": 5, "temperature": 1.5, "logprobs": 0},
        {"prompt": ["One day", "é"], "stop": [" the", "a"]},
        {"prompt": "One day", "echo": True, "max_tokens": 0},
        {"prompt": "Once upon a time", "max_tokens": 200, "logprobs": 1},
    ],
)
def test_the_concatenated_chunks_are_the_completion(
    function: Function, request_fields: dict[str, Any]
) -> None:
    whole = payload(function.invoke(http_event(path=PATH, **request_fields)))
    chunks = events(function.invoke(http_event(path=PATH, stream=True, **request_fields)))
    assert joined(chunks) == whole["choices"]
    assert len(chunks) > len(whole["choices"]) or request_fields.get("max_tokens") == 0


def test_a_stream_is_buffered_if_the_source_does_not_stream(function: Function) -> None:
    request_fields = {
        "prompt": ["The fox", "é\n\ndata: x"],
        "max_tokens": 9,
        "echo": True,
        "logprobs": 1,
    }
    whole = payload(function.invoke(http_event(path=PATH, **request_fields)))
    chunks = events(function.invoke(http_event(path=PATH, stream=True, **request_fields)))
    assert joined(chunks) == whole["choices"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_reports_usage_if_requested(function: Function) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(
        function.invoke(http_event(path=PATH, prompt="The fox", max_tokens=4, **options))
    )
    assert [chunk["usage"] for chunk in chunks] == 4 * [None]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4


def test_an_error_in_a_buffered_stream_sets_the_status(post: Post) -> None:
    status, body = post(prompt="x", stream=True, max_tokens=9999)
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")


def test_chat_completions_are_a_404_with_the_reason(function: Function) -> None:
    reply = function.invoke(http_event(path="/v1/chat/completions", messages=[]))
    assert reply["statusCode"] == 404
    assert "no chat template" in payload(reply)["error"]["message"]


def get(function: Function, path: str, method: str = "GET") -> Any:
    return function.invoke(http_event(path=path, method=method))


def test_listing_models_does_not_open_them() -> None:
    function = Function(Settings(model_uri="s3://nowhere-to-be-found/gpt2"))
    (model,) = payload(get(function, "/v1/models"))["data"]
    assert (model["id"], model["object"]) == ("s3://nowhere-to-be-found/gpt2", "model")
    found = get(function, "/v1/models/s3%3A%2F%2Fnowhere-to-be-found%2Fgpt2")
    assert (found["statusCode"], payload(found)) == (200, model)
    assert function.model.engine is None


def test_a_model_from_the_hub_has_its_repository_name() -> None:
    assert models("hf://openai/gpt2", None)["data"][0]["id"] == "openai/gpt2"
    assert models("hf://openai/gpt2", "openai/gpt2") == models(
        "hf://openai/gpt2", "hf:/openai/gpt2"
    )
    with pytest.raises(ModelNotServed, match="use openai/gpt2"):
        models("hf://openai/gpt2", "gpt2")


def test_an_unknown_model_is_not_found(function: Function) -> None:
    reply = get(function, "/v1/models/gpt-4")
    assert (reply["statusCode"], payload(reply)["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [(PATH, "GET", "POST"), ("/v1/models", "POST", "GET"), ("/v1/models/demo", "DELETE", "GET")],
)
def test_other_methods_are_rejected(function: Function, path: str, method: str, allow: str) -> None:
    reply = get(function, path, method)
    assert (reply["statusCode"], reply["headers"]["Allow"]) == (405, allow)


@pytest.mark.parametrize("source", ["url", "api", "rest", "alb"])
def test_every_reply_has_a_request_id(function: Function, source: str) -> None:
    for fields in ({"prompt": "x", "max_tokens": 1}, {"prompt": 5}):
        event = http_event(source=source, path=PATH, **fields)
        reply = function.invoke(event)
        headers = reply.get("headers") or {k: v[0] for k, v in reply["multiValueHeaders"].items()}
        assert headers["x-request-id"]
        wanted = event["requestContext"].get("requestId")
        assert wanted in (None, headers["x-request-id"])


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries(
        {"prompt": st.text(max_size=8) | JSON, "max_tokens": st.integers(0, 3) | JSON},
        optional=dict.fromkeys(FIELDS[3:], JSON),
    )
)
def test_no_body_causes_an_internal_error(function: Function, fields: dict[str, Any]) -> None:
    reply = function.invoke(http_event(json.dumps(fields), path=PATH))
    assert reply["statusCode"] in (200, 400, 404, 413)
