"""Many prompts together give what each gives alone, within bounds of memory and time."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2core import Engine, batch
from gpt2core.batch import Prompt, generate_rows
from gpt2core.errors import InvalidArgument, PromptTooLong
from gpt2core.generate import Generation
from gpt2core.model import KVCache

TALES = ["Once upon a time", "The fox", "", "There was a king who", "“Dear wife,” said he, “", "A"]


def together(engine: Engine, prompts: Any, **options: Any) -> dict[Any, Generation]:
    done = generate_rows(engine._weights, engine.config, engine.tokenizer, prompts, **options)
    return dict(done)


def plain(generation: Generation) -> tuple[Any, ...]:
    """All of a result but how long it took."""
    return generation[:4]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 255), min_size=1, max_size=64),
            st.integers(0, 70),
            st.sampled_from([(), ("e",), ("\x00", "ab"), ("É",)]),
        ),
        max_size=12,
    ),
    st.integers(1, 5),
)
def test_every_row_is_what_it_would_be_alone(
    engine: Engine, rows: list[tuple[list[int], int, tuple[str, ...]]], at_once: int
) -> None:
    prompts = [Prompt(i, *row) for i, row in enumerate(rows)]
    done = together(engine, prompts, max_rows=at_once)
    assert len(done) == len(rows)
    for i, (ids, count, stop) in enumerate(rows):
        assert plain(done[i]) == plain(engine.generate(ids, count, stop))


def test_tales_are_the_same_together_and_alone(demo: Engine) -> None:
    done = demo.generate_batch(TALES * 3, 40, stop=["\n", "king"])
    alone = [demo.generate(prompt, 40, ["\n", "king"]) for prompt in TALES]
    assert [plain(g) for g in done] == 3 * [plain(g) for g in alone]
    assert {g.finish_reason for g in done} >= {"length", "stop"}


def test_a_prompt_in_pieces_among_others_is_the_same(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [Prompt(n, [(7 * i + n) % 256 for i in range(n)], 6) for n in (50, 3, 31, 1)]
    whole = together(engine, prompts)
    monkeypatch.setattr(batch, "PREFILL_ROWS", 8)
    pieces = together(engine, prompts)
    assert {k: plain(g) for k, g in pieces.items()} == {k: plain(g) for k, g in whole.items()}


def test_results_come_as_rows_finish(engine: Engine) -> None:
    prompts = [Prompt("long", [1], 9), Prompt("short", [2], 2), Prompt("none", [3], 0)]
    done = generate_rows(engine._weights, engine.config, engine.tokenizer, prompts)
    assert [key for key, _ in done] == ["none", "short", "long"]


def test_prompts_are_taken_only_when_there_is_room(engine: Engine) -> None:
    taken = []

    def prompts() -> Iterator[Prompt]:
        for i in range(6):
            taken.append(i)
            yield Prompt(i, [i + 1], 1 if i < 4 else 2)

    done = generate_rows(engine._weights, engine.config, engine.tokenizer, prompts(), max_rows=2)
    next(done)
    assert taken == [0, 1]
    assert len(list(done)) == 5


def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The positions of all rows' caches, for each pass from now on."""
    seen: list[list[int]] = []
    forward = batch._pass

    def watched(weights: Any, config: Any, rows: Any) -> Any:
        seen.append([row.cache.capacity for row in rows])
        return forward(weights, config, rows)

    monkeypatch.setattr(batch, "_pass", watched)
    return seen


def test_caches_stay_within_their_memory_but_one_row_always_runs(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = passes(monkeypatch)
    prompts = [Prompt(i, [1, 2], 9) for i in range(7)]  # ten positions each
    room = KVCache.nbytes(engine.config, 39)
    assert len(together(engine, prompts, max_cache_bytes=room)) == 7
    assert max(map(len, seen)) == 3
    assert len(together(engine, prompts[:1], max_cache_bytes=1)) == 1


def test_rows_share_the_passes_over_the_weights(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = passes(monkeypatch)
    engine.generate_batch(["a"] * 32, 5)
    assert len(seen) == 5


class Clock:
    """Time that passes only in passes over the weights."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pass_s: float) -> None:
        self.now = 100.0
        forward = batch._pass

        def slow(*args: Any) -> Any:
            self.now += pass_s
            return forward(*args)

        monkeypatch.setattr(batch, "_pass", slow)
        monkeypatch.setattr(batch, "monotonic", lambda: self.now)


def test_at_the_deadline_everybody_gets_what_there_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 1.0)
    prompts = [Prompt(i, [i + 1], 9) for i in range(5)]
    done = together(engine, prompts, deadline=clock.now + 4.5, max_rows=2)
    assert [done[i].finish_reason for i in range(5)] == ["deadline"] * 5
    assert [len(done[i].ids) for i in range(5)] == [4, 4, 0, 0, 0]


def test_without_partial_results_nothing_begins_that_would_not_be_finished(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 1.0)
    prompts = iter([Prompt(i, [i + 1], 3) for i in range(9)])
    done = together(engine, prompts, deadline=clock.now + 7.5, max_rows=2, partial=False)
    assert {key: g.finish_reason for key, g in done.items()} == dict.fromkeys(range(4), "length")
    assert clock.now == 106.0  # the third pair would have taken until 109
    assert [prompt.key for prompt in prompts] == [5, 6, 7, 8]  # one had been taken out


def test_a_deadline_that_has_passed_starts_nothing(engine: Engine) -> None:
    done = together(engine, [Prompt(0, [1], 5)], deadline=0.0)
    assert plain(done[0]) == ("", [], 1, "deadline")


def test_an_empty_batch_is_an_empty_list(engine: Engine) -> None:
    assert engine.generate_batch([]) == []


def test_all_prompts_are_checked_before_the_first_is_continued(engine: Engine) -> None:
    with pytest.raises(PromptTooLong):
        engine.generate_batch(["a", "a" * 65])
    with pytest.raises(InvalidArgument, match="not a list"):
        engine.generate_batch("abc")
