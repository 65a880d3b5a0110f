"""Batched sequences give the same tokens as alone, within limits of memory and time.

"Alone" is `Engine.generate`, which other tests compare with logits and the reference.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpt2core import Engine, scheduler
from gpt2core.errors import CheckpointError, GPT2Error, InvalidArgument, PromptTooLong
from gpt2core.forward import KVCache
from gpt2core.generation import Generation, Prompt
from gpt2core.scheduler import Event, Scheduler
from tests.support.clock import Clock
from tests.support.models import random_tensors, small_config, write_model

TALES = ["Once upon a time", "The fox", "", "There was a king who", "“Dear wife,” said he, “", "A"]


def scheduler_of(engine: Engine, **bounds: int) -> Scheduler:
    return Scheduler(engine._forward, engine.config, engine.tokenizer, **bounds)


def run(scheduler: Scheduler, prompts: list[Prompt] | None = None) -> list[Event]:
    """All events until the scheduler is empty."""
    for prompt in prompts or []:
        scheduler.add(prompt)
    events = []
    while scheduler:
        events += scheduler.step()
    return events


def ends(events: list[Event]) -> dict[Any, Generation]:
    found: dict[Any, Generation] = {}
    for event in events:
        if event.end is not None:
            assert event.key not in found
            assert isinstance(event.end, Generation)
            found[event.key] = event.end
    return found


def together(engine: Engine, prompts: list[Prompt], **bounds: int) -> dict[Any, Generation]:
    return ends(run(scheduler_of(engine, **bounds), prompts))


def plain(generation: Generation) -> tuple[Any, ...]:
    """A result without its times."""
    return generation[:4]


SEQUENCES = st.tuples(
    st.lists(st.integers(0, 255), min_size=1, max_size=64),
    st.integers(0, 70),
    st.sampled_from([(), ("e",), ("\x00", "ab"), ("É",)]),
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SEQUENCES, max_size=12), st.integers(1, 5))
def test_every_sequence_is_the_same_as_alone(
    engine: Engine, rows: list[tuple[list[int], int, tuple[str, ...]]], at_once: int
) -> None:
    prompts = [Prompt(i, *row) for i, row in enumerate(rows)]
    done = together(engine, prompts, max_num_seqs=at_once)
    assert len(done) == len(rows)
    for i, (ids, count, stop) in enumerate(rows):
        assert plain(done[i]) == plain(engine.generate(ids, count, stop))


def test_texts_are_the_same_in_a_batch_and_alone(demo: Engine) -> None:
    done = demo.generate_batch(TALES * 3, 40, stop=["\n", "king"])
    alone = [demo.generate(prompt, 40, ["\n", "king"]) for prompt in TALES]
    assert [plain(g) for g in done] == 3 * [plain(g) for g in alone]
    assert {g.finish_reason for g in done} >= {"length", "stop"}


def test_chunked_prefill_in_a_batch_gives_the_same_tokens(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [Prompt(n, [(7 * i + n) % 256 for i in range(n)], 6) for n in (50, 3, 31, 1)]
    whole = together(engine, prompts)
    monkeypatch.setattr(scheduler, "PREFILL_ROWS", 8)
    pieces = together(engine, prompts)
    assert {k: plain(g) for k, g in pieces.items()} == {k: plain(g) for k, g in whole.items()}


def test_the_events_contain_the_tokens_of_the_result(demo: Engine) -> None:
    prompts = [Prompt(i, demo.encode_prompt(t), 30, ("king", "“")) for i, t in enumerate(TALES)]
    events = run(scheduler_of(demo), prompts)
    for key, done in ends(events).items():
        tokens = [token for event in events if event.key == key for token in event.tokens]
        assert [token.id for token in tokens] == done.ids
        assert "".join(token.text for token in tokens) == done.text


def test_sequences_end_independently(engine: Engine) -> None:
    prompts = [Prompt("long", [1], 9), Prompt("short", [2], 2), Prompt("none", [3], 0)]
    assert list(ends(run(scheduler_of(engine), prompts))) == ["none", "short", "long"]


def test_room_is_the_number_of_sequences_that_can_start(engine: Engine) -> None:
    scheduler = scheduler_of(engine, max_num_seqs=2)
    rooms = [scheduler.room]
    for key in range(3):
        scheduler.add(Prompt(key, [1], 3))
        rooms.append(scheduler.room)
    assert rooms == [2, 1, 0, 0]
    run(scheduler)
    assert (scheduler.room, len(scheduler)) == (2, 0)


def test_there_is_no_room_while_the_caches_are_full(engine: Engine) -> None:
    size = KVCache.nbytes(engine.config, 25)
    scheduler = scheduler_of(engine, max_cache_bytes=size)
    rooms = []
    for key in range(3):
        scheduler.add(Prompt(key, [1, 2], 9))  # ten positions
        rooms.append(scheduler.room > 0)
    assert rooms == [True, True, False]


def test_caches_stay_within_the_memory_limit_but_one_sequence_always_runs(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 1.0)
    prompts = [Prompt(i, [1, 2], 9) for i in range(7)]  # ten positions each
    room = KVCache.nbytes(engine.config, 39)
    assert len(together(engine, prompts, max_cache_bytes=room)) == 7
    assert max(clock.passes) == 3
    assert len(together(engine, prompts[:1], max_cache_bytes=1)) == 1


def test_sequences_share_passes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 1.0)
    engine.generate_batch(["a"] * 32, 5)
    assert clock.passes == [32] * 5


def test_a_key_is_in_use_until_its_sequence_has_ended(engine: Engine) -> None:
    scheduler = scheduler_of(engine)
    scheduler.add(Prompt("a", [1], 2))
    with pytest.raises(InvalidArgument, match="'a'"):
        scheduler.add(Prompt("a", [1], 2))
    run(scheduler)
    scheduler.add(Prompt("a", [1], 2))


def test_cancelling_returns_the_partial_result_without_an_event(engine: Engine) -> None:
    scheduler = scheduler_of(engine)
    for key in "ab":
        scheduler.add(Prompt(key, [1, 2], 5))
    scheduler.step()
    scheduler.step()
    done = scheduler.cancel("a")
    assert done is not None
    assert (done.ids, done.finish_reason) == (engine.generate_ids([1, 2], 2), "cancelled")
    assert list(ends(run(scheduler))) == ["b"]
    assert scheduler.cancel("a") is None


def test_a_waiting_sequence_can_be_cancelled(engine: Engine) -> None:
    scheduler = scheduler_of(engine, max_num_seqs=1)
    for key in "ab":
        scheduler.add(Prompt(key, [1, 2], 5))
    scheduler.step()
    done = scheduler.cancel("b")
    assert done is not None
    assert plain(done) == ("", [], 2, "cancelled")
    assert list(ends(run(scheduler))) == ["a"]


def test_every_sequence_has_its_own_deadline(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 1.0)
    deadlines = {"none": None, "soon": clock.now + 2.5, "past": clock.now, "far": clock.now + 99}
    prompts = [Prompt(key, [1], 6, (), deadline) for key, deadline in deadlines.items()]
    done = together(engine, prompts)
    assert {key: (g.finish_reason, len(g.ids)) for key, g in done.items()} == {
        "none": ("length", 6),
        "soon": ("deadline", 2),
        "past": ("deadline", 0),
        "far": ("length", 6),
    }


def test_waiting_sequences_end_at_their_deadline(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 1.0)
    prompts = [Prompt(i, [i + 1], 9, (), clock.now + 4.5) for i in range(5)]
    done = together(engine, prompts, max_num_seqs=2)
    assert [done[i].finish_reason for i in range(5)] == ["deadline"] * 5
    assert [len(done[i].ids) for i in range(5)] == [4, 4, 0, 0, 0]


def test_a_deadline_during_prefill_ends_the_sequence(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 1.0)
    monkeypatch.setattr(scheduler, "PREFILL_ROWS", 4)
    done = together(engine, [Prompt(0, list(range(20)), 5, (), clock.now + 2.5)])
    assert (plain(done[0]), clock.now) == (("", [], 20, "deadline"), 103.0)


@pytest.mark.parametrize("slow_pass", ["reads a prompt", "only decodes"])
def test_one_slow_pass_does_not_change_the_estimate(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, slow_pass: str
) -> None:
    clock = Clock(monkeypatch, 1.0)
    scheduler = scheduler_of(engine)
    scheduler.add(Prompt("a", [1], 20, (), clock.now + 80))
    for _ in range(5):
        scheduler.step()
    if slow_pass == "reads a prompt":
        scheduler.add(Prompt("b", [2], 1))
    clock.durations = [50.0]
    done = ends(run(scheduler))
    assert (done["a"].finish_reason, len(done["a"].ids)) == ("length", 20)
    assert scheduler.pass_s == 1.0


def test_nan_ends_only_its_sequence(tmp_path: Path) -> None:
    config = small_config()
    tensors = random_tensors(config)
    tensors["wte.weight"][7] = np.nan
    tensors["lm_head.weight"] = np.nan_to_num(tensors["wte.weight"])
    engine = Engine.open(write_model(tmp_path / "nan", config, tensors))
    prompts = [Prompt(i, ids, 8) for i, ids in enumerate(([1, 2], [3, 7, 4], [5], [7]))]
    found = {e.key: e.end for e in run(scheduler_of(engine), prompts) if e.end is not None}
    for bad in (1, 3):
        assert isinstance(found[bad], CheckpointError)
        assert "the weights are damaged; download the model again" in str(found[bad])
    for good in (0, 2):
        alone = engine.generate(prompts[good].ids, 8)
        assert plain(found[good]) == plain(alone)  # type: ignore[arg-type]


def test_a_text_decoding_error_ends_only_its_sequence(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = engine.generate([2], 6)
    broken = engine.generate_ids([1], 3)[2]
    assert broken not in alone.ids
    lookup = engine.tokenizer._backend.token_bytes
    monkeypatch.setattr(
        engine.tokenizer._backend, "token_bytes", lambda t: None if t == broken else lookup(t)
    )
    monkeypatch.setattr(engine.tokenizer, "_bytes", {})
    events = run(scheduler_of(engine), [Prompt("a", [1], 6), Prompt("b", [2], 6)])
    found = {event.key: event.end for event in events if event.end is not None}
    assert isinstance(found["a"], GPT2Error)
    assert plain(found["b"]) == plain(alone)  # type: ignore[arg-type]


def test_an_empty_batch_is_an_empty_list(engine: Engine) -> None:
    assert engine.generate_batch([]) == []


def test_all_prompts_are_validated_before_decoding_starts(engine: Engine) -> None:
    with pytest.raises(PromptTooLong):
        engine.generate_batch(["a", "a" * 65])
    with pytest.raises(InvalidArgument, match="not a list"):
        engine.generate_batch("abc")


class AnyOrder(RuleBasedStateMachine):
    """Sequences are added, decoded, cancelled and time out in any order, with any limits."""

    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock(self.patch, 1.0)
        self.prompts: dict[int, Prompt] = {}
        self.tokens: dict[int, list[Any]] = {}
        self.done: dict[int, Generation] = {}
        self.scheduler = scheduler_of(self.engine)

    @precondition(lambda self: not self.prompts)
    @rule(seqs=st.integers(1, 4), positions=st.integers(0, 150), prefill=st.integers(1, 40))
    def bound(self, seqs: int, positions: int, prefill: int) -> None:
        size = KVCache.nbytes(self.engine.config, positions)
        self.patch.setattr(scheduler, "PREFILL_ROWS", prefill)
        self.scheduler = scheduler_of(self.engine, max_num_seqs=seqs, max_cache_bytes=size)

    @rule(sequence=SEQUENCES, left=st.none() | st.floats(0, 40))
    def add(self, sequence: tuple[list[int], int, tuple[str, ...]], left: float | None) -> None:
        key = len(self.prompts)
        deadline = None if left is None else self.clock.now + left
        self.prompts[key] = Prompt(key, *sequence, deadline)
        self.tokens[key] = []
        self.scheduler.add(self.prompts[key])

    @rule(passes=st.integers(1, 20))
    def step(self, passes: int) -> None:
        for _ in range(passes):
            for key, tokens, end in self.scheduler.step():
                assert key not in self.done
                self.tokens[key] += tokens
                if end is not None:
                    assert isinstance(end, Generation)
                    self.done[key] = end

    @precondition(lambda self: len(self.done) < len(self.prompts))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([k for k in self.prompts if k not in self.done]))
        done = self.scheduler.cancel(key)
        assert done is not None
        assert done.finish_reason in ("cancelled", "stop")
        self.done[key] = done

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.scheduler) == len(self.prompts) - len(self.done)

    def teardown(self) -> None:
        try:
            while self.scheduler:
                self.step(1)
            assert self.done.keys() == self.prompts.keys()
            for key, prompt in self.prompts.items():
                self.check(prompt, self.done[key])
            assert not self.scheduler._running
            assert not self.scheduler._waiting
        finally:
            self.patch.undo()

    def check(self, prompt: Prompt, done: Generation) -> None:
        """The ids and text of a sequence are those it has alone, or a prefix."""
        alone = self.engine.generate(list(prompt.ids), prompt.max_new_tokens, prompt.stop)
        if done.finish_reason not in ("deadline", "cancelled"):
            whole = "stop" if done.finish_reason == "stop" else alone.finish_reason
            assert done[:4] == (*alone[:3], whole)
        assert done.ids == alone.ids[: len(done.ids)]
        if done.finish_reason != "cancelled":
            tokens = self.tokens[prompt.key]
            assert [token.id for token in tokens] == done.ids
            assert "".join(token.text for token in tokens) == done.text


def test_in_any_order_every_sequence_ends_once_and_is_the_same_as_alone(engine: Engine) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    machine = type("Machine", (AnyOrder,), {"engine": engine})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None)
    )
