"""Requests of a batch that are decoded together."""

from typing import Any

import pytest

from gpt2core import Engine
from gpt2core.errors import CheckpointError, PromptTooLong
from handler.batch import request_batch
from handler.batch.request_batch import RequestBatch, complete_all
from handler.dialects import parse_request
from handler.dialects.native import DIALECT as NATIVE
from handler.dialects.request import Request
from handler.errors import Unfinished
from handler.settings import Settings
from tests.support.clock import Clock


def request(prompt: str, max_new_tokens: int = 5) -> Request:
    return Request(NATIVE, (prompt,), False, max_new_tokens=max_new_tokens)


def test_every_request_of_a_batch_has_a_result_or_an_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 1.0)
    monkeypatch.setattr(request_batch, "monotonic", lambda: clock.now)
    requests = [("short", request("a", 3)), ("long", request("b", 30)), ("bad", request("c" * 99))]
    done = dict(complete_all(engine, Settings(), requests, clock.now + 10.5))
    assert isinstance(done["bad"], PromptTooLong)
    assert isinstance(done["long"], Unfinished)
    (completion,) = done["short"]  # type: ignore[misc]
    assert completion.text == engine.generate("a", 3).text


def test_a_request_that_cannot_finish_in_time_is_not_started(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 1.0)
    monkeypatch.setattr(request_batch, "monotonic", lambda: clock.now)
    batch = RequestBatch(engine, Settings(), clock.now + 20)
    assert batch.add("first", request("a", 5))
    while batch.pending:
        batch.step()
    assert not batch.add("too long", request("b", 30))
    assert batch.add("short enough", request("b", 10))


def test_one_slow_prompt_does_not_end_a_batch(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 0.1)
    clock.durations = [1.0, 1.0, 60.0]
    monkeypatch.setattr(request_batch, "monotonic", lambda: clock.now)
    requests = [(i, request(f"{i}", 1 + i % 9)) for i in range(300)]
    done = dict(complete_all(engine, Settings(), requests, clock.now + 120))
    assert not any(isinstance(result, Exception) for result in done.values())
    assert len(done) == 300


def test_a_failed_prompt_cancels_the_others_of_its_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = RequestBatch(engine, Settings(), None)
    batch.add("list", Request(NATIVE, ("a", "b", "c"), True, max_new_tokens=30))
    batch.add("other", request("d", 4))
    real = engine._forward.greedy

    def nan_in_the_second(x: Any) -> list[int | None]:
        ids = real(x)
        if len(ids) == 4:
            ids[1] = None
        return ids

    monkeypatch.setattr(engine._forward, "greedy", nan_in_the_second)
    finished = dict(batch.step())
    assert isinstance(finished["list"], CheckpointError)
    assert len(batch._scheduler) == 1
    while batch.pending:
        finished |= batch.step()
    assert finished["other"][0].text == engine.generate("d", 4).text  # type: ignore[index]


def test_in_a_batch_the_seed_is_derived_from_the_request(engine: Engine) -> None:
    request_fields = {"prompt": "abc", "temperature": 1.0, "max_new_tokens": 20}
    requests = [
        parse_request(request_fields),
        parse_request(request_fields),
        parse_request(request_fields | {"prompt": "x"}),
    ]

    def texts() -> list[str]:
        done = dict(complete_all(engine, Settings(), enumerate(requests), None))
        return [done[i][0].text for i in range(3)]  # type: ignore[index]

    first = texts()
    assert first == texts()
    assert first[0] == first[1] != first[2]
