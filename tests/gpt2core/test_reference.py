"""Compares with `transformers`; `test_model.py` uses stored outputs of the same models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2core import Engine, sampler
from gpt2core.sampling import Sampling
from tests.conftest import DEMO
from tests.support.models import random_tensors, small_config, write_model
from tests.support.reference_cases import CASES, Case, prompt_ids, without_end

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore"),  # warnings of torch and transformers
]

PROMPT = "Once upon a time there was a king who had"


def compare(folder: Path, ids: list[int], prompt: list[int]) -> int:
    """Compare the logits of `ids` and the greedy ids after `prompt`; returns the number of ids."""
    from tests.support import reference

    engine, model = Engine.open(folder), reference.open_reference(folder)
    np.testing.assert_allclose(engine.logits(ids), reference.logits(model, ids), rtol=0, atol=1e-4)
    expected = reference.continuation(model, prompt, 200)
    assert engine.generate_ids(prompt, len(expected)) == expected
    return len(expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_random_models_of_unusual_shapes_agree(case: Case, tmp_path: Path) -> None:
    folder = write_model(
        tmp_path / case.name, without_end(case.config), seed=case.seed, tokenizer=False
    )
    ids = prompt_ids(case, case.config["n_positions"])
    assert compare(folder, ids, prompt_ids(case, 4)) >= 20


def test_a_stored_head_that_differs_from_tied_embeddings_agrees(tmp_path: Path) -> None:
    config = without_end(small_config())
    tensors = random_tensors(config)
    tensors["lm_head.weight"] = tensors["wte.weight"][::-1].copy()
    prefixed = {n if n.startswith("lm_") else f"transformer.{n}": a for n, a in tensors.items()}
    folder = write_model(tmp_path / "model", config, prefixed, tokenizer=False)
    assert compare(folder, list(range(60)), [1, 2, 3, 4]) >= 20


def test_a_configuration_with_aliases_agrees(tmp_path: Path) -> None:
    config = without_end(small_config(n_embd=48, n_head=4))
    folder = write_model(tmp_path / "model", config, tokenizer=False)
    config["num_attention_heads"] = config.pop("n_head")
    config["hidden_size"] = config.pop("n_embd")
    (folder / "config.json").write_text(json.dumps(config))
    assert compare(folder, list(range(60)), [1, 2, 3, 4]) >= 20


def test_tiny_random_gpt2_agrees(shared_data: Path) -> None:
    ids = [(37 * i + 11) % 1000 for i in range(512)]
    assert compare(shared_data / "tiny-random-gpt2", ids, ids[:8]) >= 20


@pytest.mark.parametrize("prompt", [PROMPT, "The old woman said", "The wolf", "There was once"])
def test_the_demo_agrees_for_200_tokens(tmp_path: Path, prompt: str) -> None:
    endless = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    (endless / "generation_config.json").unlink()
    config = json.loads((endless / "config.json").read_text())
    (endless / "config.json").write_text(json.dumps(without_end(config)))
    engine = Engine.open(endless)
    ids = engine.encode_prompt(prompt)
    assert compare(endless, engine.generate_ids(ids, 500), ids) == 200


def test_transformers_tokenizes_the_demo_to_the_same_ids() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(DEMO, local_files_only=True)
    ours = Engine.open(DEMO).tokenizer
    for text in (PROMPT, '  It\'s\n\n"so"  --  né 12,345 \U0001f600\t', ""):
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == ours.decode(ids) == text


def test_the_continuation_has_the_text_of_transformers() -> None:
    from transformers import pipeline

    write = pipeline("text-generation", model=str(DEMO), dtype="float32", device="cpu")
    theirs = write(PROMPT, max_new_tokens=40, do_sample=False, return_full_text=False)
    assert Engine.open(DEMO).generate(PROMPT, 40).text == theirs[0]["generated_text"]


@pytest.mark.parametrize(
    ("name", "arguments", "ours"),
    [
        ("TemperatureLogitsWarper", (0.7,), lambda row, ids: row / np.float32(0.7)),
        ("TopKLogitsWarper", (50,), lambda row, ids: sampler.top_k(row, 50)),
        ("TopPLogitsWarper", (0.9,), lambda row, ids: sampler.top_p(row, 0.9)),
        ("TopPLogitsWarper", (0.3,), lambda row, ids: sampler.top_p(row, 0.3)),
        (
            "RepetitionPenaltyLogitsProcessor",
            (1.3,),
            lambda row, ids: sampler.processed(row, Sampling(repetition_penalty=1.3), ids, []),
        ),
        (
            "NoRepeatNGramLogitsProcessor",
            (2,),
            lambda row, ids: sampler.processed(row, Sampling(no_repeat_ngram_size=2), ids, []),
        ),
    ],
)
def test_logits_are_processed_like_in_transformers(
    name: str, arguments: tuple[float], ours: Callable[[Any, list[int]], Any]
) -> None:
    import torch
    from transformers.generation import logits_process

    theirs = getattr(logits_process, name)(*arguments)
    random = np.random.default_rng(0)
    for spread in (1, 5, 20):
        for _ in range(5):
            row = (random.normal(size=2048) * spread).astype(np.float32)
            ids = random.integers(0, 40, 90).tolist()
            expected = theirs(torch.tensor([ids]), torch.tensor(row[None].copy()))[0].numpy()
            np.testing.assert_allclose(ours(row, ids), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3},
    ],
)
def test_greedy_ids_with_processors_agree(options: dict[str, Any]) -> None:
    import torch

    from tests.support import reference

    engine, model = Engine.open(DEMO), reference.open_reference(DEMO)
    ids = engine.encode_prompt(PROMPT)
    theirs = model.generate(
        torch.tensor([ids]), max_new_tokens=60, do_sample=False, pad_token_id=0, **options
    )[0, len(ids) :].tolist()
    assert engine.generate(ids, 60, **options).ids == theirs


def test_the_models_own_penalties_agree(tmp_path: Path) -> None:
    import torch

    from tests.support import reference

    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    own = {"eos_token_id": 0, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3}
    (folder / "generation_config.json").write_text(json.dumps(own))
    engine, model = Engine.open(folder), reference.open_reference(folder)
    ids = engine.encode_prompt(PROMPT)
    theirs = model.generate(torch.tensor([ids]), max_new_tokens=60, pad_token_id=0)
    assert engine.generate_ids(ids, 60) == theirs[0, len(ids) :].tolist()


def test_sampled_tokens_are_among_the_candidates_of_transformers() -> None:
    import torch
    from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

    engine = Engine.open(DEMO)
    ids = engine.encode_prompt(PROMPT)
    new = engine.generate(ids, 60, temperature=0.8, top_k=10, top_p=0.7, seed=1).ids
    rows = torch.tensor(engine.logits(ids + new)[len(ids) - 1 : -1]) / 0.8
    left = TopPLogitsWarper(0.7)(None, TopKLogitsWarper(10)(None, rows)).numpy()
    assert np.isfinite(left[np.arange(len(new)), new]).all()
