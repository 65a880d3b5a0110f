"""Batches of a Distributed Map, and the replies."""

import json
from typing import Any

import pytest

from gpt2core import Engine
from gpt2core.errors import GPT2Error
from handler.app import Function
from handler.completions import Completion
from handler.errors import (
    BadRequest,
    BodyTooLarge,
    ModelUnavailable,
    Unfinished,
    UnsupportedEvent,
)
from handler.items import Item, parse_item
from handler.jobs import Items
from handler.settings import Settings
from handler.sources import source_of
from handler.sources.step_functions import MAX_STATE_BYTES, StepFunctions
from handler.telemetry import Report
from tests.conftest import DEMO
from tests.support.events import Context
from tests.support.state_machine import state_machine


@pytest.fixture(scope="module")
def function() -> Function:
    return Function(Settings(model_dir=str(DEMO)))


def map_results(items: list[Item], done: list[Any]) -> Any:
    return StepFunctions({}).reply(list(zip(items, done, strict=True)), Report({}, False, None))


def test_an_item_of_a_megabyte_has_a_result_or_fails_alone(function: Function) -> None:
    items = [{"prompt": "a" * (1 << 20), "id": "a"}, {"prompt": "A fox", "id": "b"}]
    first, second = function.invoke({"Items": items}, Context())["results"]
    assert (first["id"], first["error"]["type"]) == ("a", "PromptTooLong")
    assert (second["id"], second["status"]) == ("b", "ok")


def test_every_item_has_its_result_in_order(function: Function, demo: Engine) -> None:
    items = [{"prompt": "The wolf", "id": "a"}, {"prompt": 5, "custom_id": 7}, {"inputs": "A fox"}]
    results = function.invoke({"Items": items}, Context())["results"]
    assert [(r["id"], r["index"], r["status"]) for r in results] == [
        ("a", 0, "ok"),
        (7, 1, "error"),
        (None, 2, "ok"),
    ]
    assert results[0]["generated_text"] == demo.generate("The wolf").text
    assert results[1]["error"]["param"] == "prompt"
    assert "timings_ms" not in results[0]


def test_the_same_batch_gives_the_same_bytes(function: Function) -> None:
    event = {"Items": [{"prompt": "The wolf"}] * 3, "BatchInput": {"max_new_tokens": 3}}
    first, second = (json.dumps(function.invoke(event, Context())) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("text", ["a" * 2000, "ä" * 400, "x" * 90_000])
def test_a_reply_is_within_the_limit_of_step_functions(text: str) -> None:
    items = [parse_item({"prompt": "a", "id": i}) for i in range(300)]
    done = [[Completion("a", text if i % 3 else "b", [1], 1, "length")] for i in range(300)]
    reply = map_results(items, done)
    assert len(json.dumps(reply).encode()) <= MAX_STATE_BYTES
    results = reply["results"]
    kinds = ["".join(r.get("error", {}).get("type", "ok")) for r in results]
    assert set(kinds) == {"ok", "BodyTooLarge"}
    assert [(r["index"], r["id"]) for r in results] == [(i, i) for i in range(300)]


def test_a_long_id_does_not_make_a_reply_too_large() -> None:
    items = [parse_item({"prompt": "a", "id": "x" * 300_000})]
    (result,) = map_results(items, [[Completion("a", "b", [1], 1, "length")]])["results"]
    assert (result["id"], result["error"]["type"]) == (None, "BodyTooLarge")


def test_a_batch_whose_errors_would_not_fit_is_raised() -> None:
    items = [parse_item({"prompt": "a"})] * 3000
    with pytest.raises(BodyTooLarge, match="3000 items"):
        map_results(items, [[Completion("a", "b", [1], 1, "length")]] * 3000)


def test_retryable_errors_are_raised(function: Function) -> None:
    function.invoke({"warmup": True}, Context())
    with pytest.raises(Unfinished, match="2 of 3 items"):
        function.invoke({"Items": [{"prompt": "a"}, {"prompt": "b"}, {"x": 1}]}, Context(0))
    broken = Function(Settings(model_dir="/nowhere", model_dir_named=True))
    with pytest.raises(ModelUnavailable):
        broken.invoke({"Items": [{"prompt": "a"}]}, Context())


def test_an_invalid_batch_is_raised_with_its_error_type(function: Function) -> None:
    with pytest.raises(BadRequest, match="not an array"):
        function.invoke({"Items": "a"}, Context())


def items_of(event: Any) -> tuple[Item, ...]:
    job = source_of(event).parse(Settings())
    assert isinstance(job, Items)
    return job.items


def test_items_inherit_the_batch_input_and_override_it() -> None:
    items = [{"prompt": "a", "id": 0}, {"prompt": "b", "max_new_tokens": 9}]
    first, second = items_of({"Items": items, "BatchInput": {"max_new_tokens": 3}})
    assert (first.id, second.id) == (0, None)
    assert [item.request.max_new_tokens for item in (first, second)] == [3, 9]  # type: ignore[union-attr]


def test_an_invalid_item_keeps_its_id() -> None:
    (item,) = items_of({"Items": [{"prompt": 5, "custom_id": "x"}]})
    assert item.id == "x"
    assert isinstance(item.request, GPT2Error)


@pytest.mark.parametrize("event", [{"Items": 5}, {"Items": None}, {"Items": [], "BatchInput": 5}])
def test_an_invalid_batch_is_rejected(event: Any) -> None:
    with pytest.raises(BadRequest):
        items_of(event)


def test_a_dynamodb_scan_is_not_a_batch() -> None:
    with pytest.raises(UnsupportedEvent):
        source_of({"Items": [{"id": {"S": "a"}}], "Count": 1, "ScannedCount": 1})


def test_the_event_of_the_template_is_processed(function: Function) -> None:
    """Lines are read and batched as in the definition of the state machine."""
    state = state_machine()["States"]["Prompts"]
    size = state["ItemBatcher"]["MaxItemsPerBatch"]
    prompts = [{"prompt": f"Once {i}", "max_new_tokens": 1, "id": i} for i in range(2 * size + 1)]
    batch_input = {k: v for k, v in state["ItemBatcher"].items() if k == "BatchInput"}
    found = []
    for begin in range(0, len(prompts), size):
        event = {"Items": prompts[begin : begin + size]} | batch_input
        found += function.invoke(event, Context())["results"]
    assert [(result["id"], result["status"]) for result in found] == [
        (i, "ok") for i in range(len(prompts))
    ]
