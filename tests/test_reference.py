"""Live against `transformers`; the same models through stored outputs are in `test_model.py`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gpt2core import Engine
from tests.conftest import DEMO
from tests.models import random_tensors, small_config, write_model
from tests.reference_cases import CASES, Case, prompt_ids, without_end

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore"),  # torch's and transformers' own
]

PROMPT = "Once upon a time there was a king who had"


def compare(folder: Path, ids: list[int], prompt: list[int]) -> int:
    """Logits of `ids` and greedy ids after `prompt`; how many greedy ids were compared."""
    from tests import reference

    engine, model = Engine.open(folder), reference.open_reference(folder)
    np.testing.assert_allclose(engine.logits(ids), reference.logits(model, ids), rtol=0, atol=1e-4)
    expected = reference.continuation(model, prompt, 200)
    assert engine.generate_ids(prompt, len(expected)) == expected
    return len(expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_random_models_of_odd_shapes_agree(case: Case, tmp_path: Path) -> None:
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


def test_a_configuration_under_the_other_names_agrees(tmp_path: Path) -> None:
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
    config = json.loads((endless / "config.json").read_text())
    (endless / "config.json").write_text(json.dumps(without_end(config)))
    engine = Engine.open(endless)
    ids = engine.encode_prompt(prompt)
    assert compare(endless, engine.generate_ids(ids, 500), ids) == 200


def test_transformers_tokenizes_the_demo_as_we_do() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(DEMO, local_files_only=True)
    ours = Engine.open(DEMO).tokenizer
    for text in (PROMPT, '  It\'s\n\n"so"  --  né 12,345 \U0001f600\t', ""):
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == ours.decode(ids) == text


def test_the_continuation_as_text_is_what_transformers_writes() -> None:
    from transformers import pipeline

    write = pipeline("text-generation", model=str(DEMO), dtype="float32", device="cpu")
    theirs = write(PROMPT, max_new_tokens=40, do_sample=False, return_full_text=False)
    assert Engine.open(DEMO).generate(PROMPT, 40).text == theirs[0]["generated_text"]
