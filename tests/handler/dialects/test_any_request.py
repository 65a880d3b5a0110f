"""Any request in any dialect and from any source gets a reply that is not a 5xx."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.app import Function
from handler.dialects import dialects
from handler.dialects.request import Dialect
from handler.settings import Settings
from handler.sources.http import routes
from tests.support.dialects import name_of, path_of
from tests.support.events import http_event

SOURCES = ("url", "api", "rest", "alb")
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 6), st.floats(),
    st.floats(-2, 2), st.text(max_size=8), st.sampled_from(["a", "abc", "\ud800", "\0", "é😀"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from("0123"), inner, max_size=3)
    ),
    max_leaves=6,
)
prompts = st.text(max_size=12) | st.lists(st.text(max_size=5) | st.integers(0, 255), max_size=3)
limits = st.integers(0, 4)
# Values that are often valid, so that requests pass validation.
USUAL: dict[str, st.SearchStrategy[Any]] = {
    "prompt": prompts, "inputs": prompts, "max_new_tokens": limits, "max_tokens": limits,
    "stop": st.text(min_size=1, max_size=3), "stream": st.booleans(), "echo": st.booleans(),
    "details": st.booleans(), "logprobs": st.integers(0, 5), "n": st.integers(1, 3),
    "temperature": st.floats(0, 2), "top_p": st.floats(0, 1), "top_k": limits,
    "seed": st.integers(-(2**63), 2**64 - 1), "logit_bias": st.just({"5": -100}),
    "model": st.none(), "repetition_penalty": st.floats(0.5, 2), "id": st.integers(0, 9),
    "no_repeat_ngram_size": limits, "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2), "do_sample": st.booleans(),
    "return_full_text": st.booleans(), "allow_special": st.booleans(),
    "include_usage": st.booleans(), "user": st.text(max_size=3), "options": st.just({}),
    "best_of": st.just(1), "num_return_sequences": st.just(1), "watermark": st.just(False),
    "decoder_input_details": st.just(False),
}  # fmt: skip


def usual(name: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Plausible values of a field; fields without such values get any value."""
    return requests(schema) if "properties" in schema else USUAL.get(name, values)


def requests(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Plausible values of some fields; at most one is replaced by any JSON value."""
    fields, needed = schema["properties"], schema.get("required", ())
    found = {name: usual(name, fields[name]) for name in fields}
    plausible = st.fixed_dictionaries(
        {name: found[name] for name in needed},
        optional={name: value for name, value in found.items() if name not in needed},
    )
    odd = st.dictionaries(st.sampled_from(sorted(fields)), values, max_size=1)
    return st.builds(lambda fields, other: fields | other, plausible, odd)


@pytest.fixture(scope="module")
def function(model_dir: Path) -> Function:
    return Function(Settings(model_dir=str(model_dir), model_dir_named=True))


def check(reply: dict[str, Any]) -> None:
    assert reply["statusCode"] < 500, reply["body"]
    json.dumps(reply).encode()
    headers = reply.get("headers") or {k: v[0] for k, v in reply["multiValueHeaders"].items()}
    if headers["Content-Type"] == "application/json":
        json.loads(reply["body"])


@pytest.mark.parametrize("dialect", list(dialects()), ids=name_of)
@given(data=st.data(), source=st.sampled_from(SOURCES))
def test_any_fields_are_parsed_or_rejected(
    function: Function, dialect: Dialect, data: st.DataObject, source: str
) -> None:
    schema = dialect.describe().get("request")
    body = json.dumps(data.draw(requests(schema) if schema else values))
    check(function.invoke(http_event(body, source=source, path=path_of(dialect))))


@given(
    body=st.binary(max_size=40) | st.text(max_size=40),
    path=st.sampled_from(sorted(routes())) | st.text(max_size=12).map(lambda t: f"/{t}"),
    method=st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "FOO"]) | st.text(max_size=4),
    kind=st.sampled_from(["application/json", "application/x-www-form-urlencoded", ""])
    | st.text(max_size=12),
    source=st.sampled_from(SOURCES),
)
def test_any_body_path_and_method_gets_a_reply_below_500(
    function: Function, body: Any, path: str, method: str, kind: str, source: str
) -> None:
    event = http_event(
        body, source=source, path=path, method=method, headers={"content-type": kind}
    )
    check(function.invoke(event))
