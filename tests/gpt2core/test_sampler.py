"""Sampling. Literal vectors are outputs of the logits processors of `transformers` 5.23, with which
`test_reference.py` compares the same functions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt2core import Engine, sampler
from gpt2core.errors import CheckpointError, InvalidArgument
from gpt2core.generation import Generation, Logprob, Prompt, Token
from gpt2core.kernels.reference import Float32
from gpt2core.sampling import Sampling
from gpt2core.scheduler import Scheduler
from tests.support.fresh_process import modules_after
from tests.support.models import random_tensors, script_for, write_model, write_scripted_model
from tests.support.models import small_config as config

INF = float("inf")
SCORES = [2.0, -1.0, 0.5, 3.0, -2.5, 0.0, 1.25, 2.75]
IDS = [1, 3, 3, 7, 1, 3]


def scores(values: list[float] = SCORES) -> Float32:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (1.3, [2.0, -1.3, 0.5, 2.307692, -2.5, 0.0, 1.25, 2.115385]),
        (0.5, [2.0, -0.5, 0.5, 6.0, -2.5, 0.0, 1.25, 5.5]),
    ],
)
def test_repetition_penalty(penalty: float, expected: list[float]) -> None:
    row = scores()
    sampler.repetition_penalty(row, IDS, penalty)
    np.testing.assert_allclose(row, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "forbidden"), [(1, {1, 3, 7}), (2, {3, 7}), (3, {3}), (4, set()), (9, set())]
)
def test_no_repeat_ngram(size: int, forbidden: set[int]) -> None:
    row = scores()
    sampler.no_repeat_ngram(row, IDS, size)
    assert row.tolist() == [-INF if i in forbidden else x for i, x in enumerate(SCORES)]


@pytest.mark.parametrize(
    ("k", "kept"), [(3, {0, 3, 7}), (1, {3}), (0, None), (8, None), (99, None)]
)
def test_top_k(k: int, kept: set[int] | None) -> None:
    expected = [x if kept is None or i in kept else -INF for i, x in enumerate(SCORES)]
    assert sampler.top_k(scores(), k).tolist() == expected


def test_top_k_keeps_ties() -> None:
    assert sampler.top_k(scores([1, 2, 1, 0]), 2).tolist() == [1, 2, 1, -INF]


@pytest.mark.parametrize(
    ("p", "kept"), [(0.9, {0, 3, 6, 7}), (0.5, {3, 7}), (0.1, {3}), (0.0, {3}), (1.0, None)]
)
def test_top_p(p: float, kept: set[int] | None) -> None:
    expected = [x if kept is None or i in kept else -INF for i, x in enumerate(SCORES)]
    assert sampler.top_p(scores(), p).tolist() == expected


def test_presence_and_frequency_penalties_count_the_tokens() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, as OpenAI documents it."""
    row = scores()
    sampler.penalties(row, [3, 3, 0], presence=0.5, frequency=0.25)
    np.testing.assert_allclose(row, [1.25, -1.0, 0.5, 2.0, -2.5, 0.0, 1.25, 2.75])


def test_logit_bias_is_added() -> None:
    row = scores()
    sampler.logit_bias(row, {0: 100, 5: -0.5})
    np.testing.assert_allclose(row, [102.0, -1.0, 0.5, 3.0, -2.5, -0.5, 1.25, 2.75])


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    st.floats(0, 1),
    st.integers(0, 50),
    st.floats(0, 1, exclude_max=True),
)
@example(values=[1e-26, 0.0], p=0.0, k=0, u=0.0)  # equal probabilities
def test_only_candidates_are_sampled(values: list[float], p: float, k: int, u: float) -> None:
    left = sampler.top_p(sampler.top_k(scores(values), k), p)
    token = sampler.draw(left, u)
    assert left[token] == np.float32(values[token])
    assert left.max() == scores(values).max()


def test_samples_follow_the_probabilities() -> None:
    row = np.log(np.array([0.1, 0.6, 0.0, 0.3], np.float32), where=[True, True, False, True],
                 out=np.full(4, -np.inf, np.float32))  # fmt: skip
    drawn = [sampler.draw(row, sampler.uniform(7, 0, i)) for i in range(20_000)]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, [0.1, 0.6, 0, 0.3], atol=0.015)  # four standard deviations


def test_uniform_numbers_are_stable() -> None:
    assert [sampler.uniform(*key) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))] == [
        0.13870941014555427,
        0.6935121390102292,
        0.5803592313314876,
        0.2582654469187293,
    ]


def test_uniform_numbers_are_uniform_for_every_part_of_the_key() -> None:
    for place in range(3):
        keys = [[5, 5, 5] for _ in range(4096)]
        for i, key in enumerate(keys):
            key[place] = i
        shares = np.histogram([sampler.uniform(*key) for key in keys], 16, (0, 1))[0]
        assert (np.abs(shares - 256) < 80).all()  # five standard deviations


def test_logprobs_are_those_of_the_model_before_sampling() -> None:
    found = sampler.logprob(scores(), 1, 3)
    expected = np.array(SCORES) - np.log(np.exp(SCORES).sum())
    assert found.logprob == pytest.approx(expected[1], abs=1e-6)
    assert [i for i, _ in found.top] == [3, 7, 0]
    np.testing.assert_allclose([x for _, x in found.top], expected[[3, 7, 0]], atol=1e-6)
    assert found == sampler.logprob(scores(), 1, 5)._replace(top=found.top)


def test_equal_logprobs_are_ordered_by_id() -> None:
    assert [i for i, _ in sampler.logprob(scores([1, 2, 1, 1]), 0, 3).top] == [1, 0, 2]


# In the engine

OPTIONS = (
    {"temperature": 0.9, "seed": 1},
    {"temperature": 1.3, "top_k": 20, "seed": 2},
    {"temperature": 1.0, "top_p": 0.8, "seed": 3},
    {"repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 2},
    {"presence_penalty": 1.5, "frequency_penalty": 0.5, "temperature": 0.5, "seed": -4},
    {"logit_bias": {32: 3.0, 101: -100}},
    {},
)


def together(engine: Engine, prompts: list[Prompt]) -> dict[Any, Generation]:
    scheduler = Scheduler(engine._forward, engine.config, engine.tokenizer)
    done = {}
    for prompt in prompts:
        scheduler.add(prompt)
    while scheduler:
        for key, _, end in scheduler.step():
            if end:
                assert isinstance(end, Generation)
                done[key] = end
    return done


def test_every_sequence_is_the_same_as_alone(engine: Engine) -> None:
    prompts = [
        Prompt(i, [i, 7, 9], 12, sampling=Sampling(**options), logprobs=i % 3 or None)
        for i, options in enumerate(OPTIONS * 2)
    ]
    done = together(engine, prompts)
    for i, options in enumerate(OPTIONS * 2):
        alone = engine.generate([i, 7, 9], 12, logprobs=i % 3 or None, **options)  # type: ignore[arg-type]
        assert done[i][:4] == alone[:4]
        if alone.logprobs is None:
            assert done[i].logprobs is None
        else:
            assert [(p.id, [t for t, _ in p.top]) for p in done[i].logprobs or []] == [
                (p.id, [t for t, _ in p.top]) for p in alone.logprobs
            ]


def test_the_seed_determines_the_text(demo: Engine) -> None:
    one, again, other = (
        demo.generate("Once upon a time", 30, temperature=1.0, seed=seed).text for seed in (1, 1, 2)
    )
    assert one == again != other


def test_choices_of_one_seed_differ(demo: Engine) -> None:
    ids = demo.encode_prompt("Once upon a time")
    choices = [Sampling(temperature=1.0, seed=1, choice=i) for i in range(4)]
    done = together(demo, [Prompt(i, ids, 30, sampling=s) for i, s in enumerate(choices)])
    assert len({done[i].text for i in range(4)}) == 4
    assert done[0].text == demo.generate(ids, 30, temperature=1.0, seed=1).text


def test_texts_differ_without_a_seed(demo: Engine) -> None:
    texts = [g.text for g in demo.generate_batch(["The fox"] * 3, 30, temperature=1.0)]
    texts += [demo.generate("The fox", 30, temperature=1.0).text for _ in range(2)]
    assert len(set(texts)) == 5


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 5, "top_p": 0.5, "seed": 9}])
def test_without_a_temperature_decoding_is_greedy(demo: Engine, options: dict[str, Any]) -> None:
    plain = demo.generate("The fox", 20)
    assert demo.generate("The fox", 20, **options)[:3] == plain[:3]
    assert demo.generate("The fox", 20, **options, logprobs=0)[:3] == plain[:3]


def test_top_k_of_one_is_greedy(demo: Engine) -> None:
    sampled = demo.generate("The fox", 20, temperature=2.0, top_k=1, seed=3)
    assert sampled.ids == demo.generate("The fox", 20).ids


def test_no_ngram_occurs_twice(demo: Engine) -> None:
    ids = demo.encode_prompt("The fox and the fox")
    new = demo.generate(ids, 100, no_repeat_ngram_size=3).ids
    grams = [tuple((ids + new)[i : i + 3]) for i in range(len(ids + new) - 2)]
    assert len(set(grams)) == len(grams)


def test_ngrams_that_forbid_all_tokens_are_an_error(tmp_path: Path) -> None:
    write_model(tmp_path / "model", config(vocab_size=3, eos_token_id=None), tokenizer=False)
    engine = Engine.open(tmp_path / "model")
    prompt = Prompt(0, [0, 1], 9, sampling=Sampling(no_repeat_ngram_size=1))
    scheduler = Scheduler(engine._forward, engine.config, None)
    scheduler.add(prompt)
    scheduler.step()
    (event,) = scheduler.step()
    assert isinstance(event.end, InvalidArgument)
    assert event.end.param == "no_repeat_ngram_size"


def test_logprobs_agree_with_the_logits(demo: Engine) -> None:
    ids = demo.encode_prompt("Once upon a time there was")
    done = demo.generate(ids, 8, logprobs=2, prompt_logprobs=True, temperature=1.0, seed=5)
    rows = demo.logits(ids + done.ids).astype(np.float64)
    expected = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    found = (done.prompt_logprobs or []) + (done.logprobs or [])
    assert [p.id for p in found] == (ids + done.ids)[1:]
    for row, position in zip(expected, found, strict=False):
        assert position.logprob == pytest.approx(row[position.id], abs=1e-4)
        assert [i for i, _ in position.top] == (-row).argsort(kind="stable")[:2].tolist()


def test_prompt_logprobs_do_not_depend_on_chunked_prefill(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [(7 * i) % 256 for i in range(50)]
    scored = [Prompt(i, ids[i:], 2, logprobs=1, prompt_logprobs=True) for i in range(3)]
    prompts = [Prompt("plain", ids[:5], 2), *scored]  # shares a pass with the first of them
    whole = together(engine, prompts)
    monkeypatch.setattr("gpt2core.scheduler.PREFILL_ROWS", 8)
    monkeypatch.setattr("gpt2core.scheduler._SCORED_ROWS", 3)
    pieces = together(engine, prompts)
    for i in range(3):
        ours, theirs = pieces[i].prompt_logprobs or [], whole[i].prompt_logprobs or []
        assert [p.id for p in ours] == ids[i + 1 :]
        np.testing.assert_allclose(
            [p.logprob for p in ours], [p.logprob for p in theirs], atol=1e-5
        )


def test_decoding_continues_during_the_prefill_of_another_sequence(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2core.scheduler.PREFILL_ROWS", 8)
    sampled = Prompt("sampled", [(7 * i) % 256 for i in range(50)], 3, logprobs=1)
    done = together(engine, [Prompt("greedy", [1], 9), sampled])
    assert done["greedy"].ids == engine.generate_ids([1], 9)
    assert done["sampled"].ids == engine.generate_ids(sampled.ids, 3)


def test_a_prompt_can_be_scored_without_a_new_token(engine: Engine) -> None:
    ids = [(7 * i) % 256 for i in range(64)]  # the whole context
    done = engine.generate(ids, 0, logprobs=1, prompt_logprobs=True)
    assert (done.ids, done.finish_reason, done.logprobs) == ([], "length", [])
    assert [p.id for p in done.prompt_logprobs or []] == ids[1:]


def test_the_end_of_text_token_has_a_logprob(tmp_path: Path) -> None:
    write_scripted_model(tmp_path, [*script_for("x", b"ab\n"), 256])
    done = Engine.open(tmp_path).generate("x", 9, logprobs=0)
    assert (done.finish_reason, done.ids) == ("eos", [97, 98, 10])
    assert [p.id for p in done.logprobs or []] == [97, 98, 10, 256]


def test_streamed_tokens_have_logprobs(demo: Engine) -> None:
    *tokens, done = demo.stream("The fox", 12, stop=["king"], logprobs=1)
    assert isinstance(done, Generation)
    assert done.logprobs
    streamed = [token.logprob for token in tokens if isinstance(token, Token)]
    assert streamed == done.logprobs
    assert all(
        isinstance(p, Logprob) and p.id == i for p, i in zip(streamed, done.ids, strict=True)
    )


def test_nan_ends_only_its_sequence(tmp_path: Path) -> None:
    tensors = random_tensors(config())
    tensors["wpe.weight"][3] = np.nan
    engine = Engine.open(write_model(tmp_path / "model", config(), tensors))
    scheduler = Scheduler(engine._forward, engine.config, engine.tokenizer)
    scheduler.add(Prompt("bad", [1, 2, 3, 4], 3, sampling=Sampling(temperature=1.0)))
    scheduler.add(Prompt("good", [1], 3, sampling=Sampling(temperature=1.0)))
    ends = {}
    while scheduler:
        ends |= {event.key: event.end for event in scheduler.step() if event.end}
    assert isinstance(ends["bad"], CheckpointError)
    assert isinstance(ends["good"], Generation)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 1.01}, "top_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": [1]}, "frequency_penalty"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"logit_bias": {257: 1}}, "logit_bias"),
        ({"logit_bias": {1: 101}}, "logit_bias"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt_logprobs": True}, "logprobs"),
    ],
)
def test_invalid_values_are_rejected_by_name(
    engine: Engine, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidArgument, match=param) as raised:
        engine.generate([1], 3, **options)
    assert raised.value.param == param


def test_integer_bounds_are_printed_whole(engine: Engine) -> None:
    with pytest.raises(InvalidArgument, match=r"not an integer from 0 to 2147483647$"):
        engine.generate([1], 3, top_k=-1)


@pytest.mark.parametrize("name", ["max_tokens", "choice"])
def test_an_unknown_option_is_named_with_the_known_ones(engine: Engine, name: str) -> None:
    options: dict[str, Any] = {name: 3}
    with pytest.raises(TypeError, match=f"^unexpected keyword argument '{name}': .*temperature"):
        engine.generate([1], **options)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-300, "seed": 0},
        {"temperature": 1.1e-5, "repetition_penalty": 100, "seed": 0},
        {"temperature": 100, "top_p": 0, "top_k": 2**31 - 1},
        {"repetition_penalty": 0.01, "logit_bias": {0: -100, 1: 100}, "temperature": 100},
        {"temperature": None, "top_k": None, "seed": None, "logit_bias": {}},
    ],
)
def test_the_limits_of_ranges_are_accepted(engine: Engine, options: dict[str, Any]) -> None:
    with np.errstate(all="raise", under="ignore"):
        done = engine.generate(
            [1, 2], 5, logit_bias={256: -100} | (options.pop("logit_bias", {})), **options
        )
    assert len(done.ids) == 5


def test_invalid_values_are_rejected_without_numpy() -> None:
    loaded = modules_after(
        "from gpt2core.sampling import checked_sampling\n"
        "try: checked_sampling({'top_p': 2})\n"
        "except ValueError: pass"
    )
    assert "numpy" not in loaded


def test_sampling_needs_only_the_core_of_numpy(model_dir: Path) -> None:
    options = (
        "temperature=1.0, top_k=9, top_p=0.9, repetition_penalty=2, no_repeat_ngram_size=2,"
        " frequency_penalty=1, logit_bias={1: 1}, logprobs=2"
    )
    loaded = modules_after(
        "from gpt2core.startup import slim_numpy\n"
        "slim_numpy.install()\n"
        "from gpt2core import Engine\n"
        f"engine = Engine.open({str(model_dir)!r})\n"
        f"engine.generate([1, 2], 5, {options})"
    )
    assert "numpy" in loaded
    assert loaded.isdisjoint({"numpy.lib", "numpy.random"})
