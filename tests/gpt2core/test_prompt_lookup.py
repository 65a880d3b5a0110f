"""Prompt lookup: several tokens per pass, the same as in separate passes."""

from pathlib import Path

import pytest

from gpt2core import Engine
from gpt2core.generation import Generation, Prompt
from gpt2core.pack import pack
from gpt2core.prompt_lookup import DraftCost, PromptLookup
from gpt2core.sampling import Sampling
from gpt2core.scheduler import Scheduler
from tests.conftest import ROOT
from tests.support.kernels import needs_native
from tests.support.models import small_config, write_model

PROMPTS = ["Once upon a time there was a king who", "My name is", "A", "The fox and the fox and"]


def test_a_draft_is_what_followed_the_last_two_tokens_most_recently() -> None:
    assert PromptLookup([1, 2, 7, 1, 2, 8, 9, 1, 2]).draft_tokens([], 3) == [8, 9, 1]


def test_draft_tokens_reach_from_the_prompt_into_the_new_tokens() -> None:
    assert PromptLookup([5, 1, 2, 3]).draft_tokens([4, 1, 2], 2) == [3, 4]


def test_unseen_token_pairs_give_no_draft() -> None:
    assert PromptLookup([1, 2, 3]).draft_tokens([], 3) == []
    assert PromptLookup([1]).draft_tokens([], 3) == []


def test_a_repetition_is_continued_beyond_the_end_of_the_text() -> None:
    assert PromptLookup([4, 4, 4]).draft_tokens([], 3) == [4, 4, 4]
    assert PromptLookup([1, 2, 1, 2]).draft_tokens([], 3) == [1, 2, 1]


def test_wrong_draft_tokens_double_the_pause_and_right_ones_reset_it() -> None:
    lookup = PromptLookup([4, 4, 4])

    def passes_without_draft() -> int:
        n = 0
        while not lookup.draft_tokens([], 3):
            n += 1
        return n

    pauses = []
    for _ in range(8):
        lookup.record_accepted(0)
        pauses.append(passes_without_draft())
    assert pauses == [1, 2, 4, 8, 16, 32, 32, 32]
    lookup.record_accepted(1)
    assert passes_without_draft() == 0
    lookup.record_accepted(0)
    assert passes_without_draft() == 1


@pytest.mark.parametrize(
    ("times", "is_low"),
    [
        ([], False),
        ([(1, 1.0)] * 2, False),
        ([(1, 1.0)] * 3, True),
        ([(1, 1.0)] * 3 + [(4, 1.3)], True),
        ([(1, 1.0)] * 3 + [(4, 1.5)], False),
        ([(1, 1.0)] * 3 + [(4, 9.0), (4, 1.2)], True),  # one slow pass does not count
        ([(1, 1.0)] * 3 + [(4, 1.5)] + [(1, 1.2)] * 9, True),  # single passes became slower
    ],
)
def test_draft_tokens_are_made_if_they_cost_at_most_1_4_passes(
    times: list[tuple[int, float]], is_low: bool
) -> None:
    cost = DraftCost()
    for n_rows, seconds in times:
        cost.add(n_rows, seconds)
    assert cost.is_low == is_low


class _AlwaysLow(DraftCost):
    is_low = True


@pytest.fixture(scope="module", params=["f32", "bf16", "int8"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    needs_native()
    folder = tmp_path_factory.mktemp("packed") / "demo"
    pack(ROOT / "models" / "demo", folder, request.param)
    return Engine.open(folder, kernels="native", prompt_lookup=False)


def decoded(engine: Engine, prompts: list[Prompt], lookup: bool) -> tuple[list[Generation], int]:
    """Results in the order of the prompts, and the number of passes."""
    scheduler = Scheduler(engine._forward, engine.config, engine.tokenizer, prompt_lookup=lookup)
    if lookup:
        scheduler._draft_cost = _AlwaysLow()
    for prompt in prompts:
        scheduler.add(prompt)
    found: dict[int, Generation] = {}
    text: dict[int, str] = {}
    passes = 0
    while scheduler:
        passes += 1
        for key, tokens, end in scheduler.step():
            assert key not in found
            text[key] = text.get(key, "") + "".join(token.text for token in tokens)
            if end is not None:
                assert isinstance(end, Generation)
                assert text[key] == end.text
                found[key] = end
    return [found[prompt.key]._replace(prefill_s=0, decode_s=0) for prompt in prompts], passes


@pytest.mark.parametrize("text", PROMPTS)
def test_the_tokens_are_the_same_with_fewer_passes(engine: Engine, text: str) -> None:
    prompt = Prompt(0, engine.encode_prompt(text), 200)
    with_lookup, fewer = decoded(engine, [prompt], lookup=True)
    without, passes = decoded(engine, [prompt], lookup=False)
    assert with_lookup == without
    assert fewer < passes


@pytest.mark.parametrize("limit", range(1, 30))
def test_the_limit_of_new_tokens_holds(engine: Engine, limit: int) -> None:
    prompt = Prompt(0, engine.encode_prompt(PROMPTS[3]), limit)
    assert decoded(engine, [prompt], True)[0] == decoded(engine, [prompt], False)[0]


def test_a_sequence_ends_at_the_context_limit(engine: Engine) -> None:
    ids = (engine.encode_prompt("and the fox") * 400)[: engine.config.n_positions - 9]
    prompt = Prompt(0, ids, 500)
    (found,), _ = decoded(engine, [prompt], True)
    assert len(found.ids) <= 9
    assert [found] == decoded(engine, [prompt], False)[0]


@pytest.mark.parametrize("stop", [" the", "e", ", and"])
def test_a_stop_string_among_the_draft_tokens_ends_the_text(engine: Engine, stop: str) -> None:
    for text in PROMPTS:
        prompt = Prompt(0, engine.encode_prompt(text), 100, stop=(stop,))
        assert decoded(engine, [prompt], True)[0] == decoded(engine, [prompt], False)[0]


def test_batched_and_sampled_sequences_make_no_draft_tokens(engine: Engine) -> None:
    ids = engine.encode_prompt(PROMPTS[3])
    together = [Prompt(i, ids, 40) for i in range(2)]
    sampled = [Prompt(0, ids, 40, sampling=Sampling(temperature=0.5, seed=3))]
    for prompts in (together, sampled):
        assert decoded(engine, prompts, True) == decoded(engine, prompts, False)


def test_an_end_of_text_token_among_the_draft_tokens_ends_the_text(engine: Engine) -> None:
    ids = engine.encode_prompt(PROMPTS[3])
    for end in dict.fromkeys(engine.generate_ids(ids, 60)):
        config = engine.config._replace(eos_token_ids=(end,))
        ending = Engine(engine.model_dir, config, engine._forward)
        (found,), _ = decoded(ending, [Prompt(0, ids, 60)], True)
        assert found.finish_reason == "eos"
        assert [found] == decoded(ending, [Prompt(0, ids, 60)], False)[0]


def test_numpy_kernels_make_no_draft_tokens(tmp_path: Path) -> None:
    engine = Engine.open(write_model(tmp_path / "m", small_config()), kernels="numpy")
    assert engine._prompt_lookup is False
