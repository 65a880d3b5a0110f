"""`python -m gpt2core verify` with correct and wrong weights."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2core import Engine
from gpt2core.pack import pack
from gpt2core.verify import Check, published_name, read_published, verify
from tests.conftest import DEMO, ROOT
from tests.support.models import random_tensors, small_config, write_model

NAME = "small"
SOURCE = {"model": NAME, "source": "a test", "licence": "MIT"}
IDS = [1, 2, 3, 4, 5, 6]


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpt2core", "verify", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={},
        check=False,
    )


def check(folder: Path, **records: list[dict[str, Any]]) -> list[Check]:
    published = {"outputs": [], "numbers": [], "digests": []} | {
        kind: [SOURCE | record for record in rows] for kind, rows in records.items()
    }
    return list(verify(Engine.open(folder), NAME, published))


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def logprobs(engine: Engine, ids: list[int]) -> list[float]:
    """Log probabilities of the tokens after the first, in float64."""
    scores = np.exp(engine.logits(ids[:-1]).astype(np.float64))
    return [float(np.log(row[i] / row.sum())) for row, i in zip(scores, ids[1:], strict=True)]


@pytest.fixture
def tiny(shared_data: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "tiny"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(shared_data / "tiny-random-gpt2" / name, copy / name)
    return copy


def test_the_published_tiny_model_agrees(tiny: Path) -> None:
    result = run(tiny)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("agrees       6 of 6 tokens") == 2
    assert result.stdout.endswith("2 agree, 0 differ, 0 not checked\n")


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_packed_model_is_compared_like_a_raw_one(
    tiny: Path, tmp_path: Path, precision: str
) -> None:
    pack(tiny, tmp_path / "packed", precision)
    assert run(tmp_path / "packed").returncode == 0


def test_wrong_weights_differ_at_a_reported_token(tiny: Path) -> None:
    file = tiny / "model.safetensors"
    data = bytearray(file.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    weights = np.frombuffer(data, "<f4", offset=begin)  # a view of `data`
    weights[:] = weights[::-1].copy()
    file.write_bytes(data)
    result = run(tiny)
    assert result.returncode == 1
    assert "differs" in result.stdout
    assert "0 agree, 2 differ" in result.stdout
    assert "their logits differ by" in result.stdout


def test_a_model_of_another_shape_is_not_checked_and_exits_with_1() -> None:
    result = run(DEMO)
    assert result.returncode == 1
    assert result.stdout.startswith("not checked: no published results for 5 layers of 256")


def test_a_directory_without_a_model_is_one_error_line(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "record",
    [
        lambda e: {"logprobs": logprobs(e, IDS), "tolerance": 1e-4},
        lambda e: {"logprobs": logprobs(e, IDS)[2:], "tolerance": 1e-4},
        lambda e: {"logprobs": logprobs(e, IDS), "relative": 1e-4},
        lambda e: {"scored": 3, "sum": sum(logprobs(e, IDS)[-3:]), "tolerance": 1e-4},
        lambda e: {"logits": [[7, float(e.logits(IDS)[-1][7])]], "tolerance": 1e-5},
    ],
    ids=["all", "the last", "relative", "sum", "logits"],
)
def test_numbers_agree_only_within_their_tolerance(
    model_dir: Path, record: Callable[[Engine], dict[str, Any]]
) -> None:
    right = record(Engine.open(model_dir)) | {"ids": IDS}
    wrong = json.loads(json.dumps(right))
    if "logits" in wrong:
        wrong["logits"][0][1] += 0.01
    elif "sum" in wrong:
        wrong["sum"] += 0.01
    else:
        wrong["logprobs"][-1] += 0.01
    assert [c.agrees for c in check(model_dir, numbers=[right, wrong])] == [True, False]


def test_options_are_not_checked_with_another_tokenizer(model_dir: Path) -> None:
    record = {"prompt_ids": IDS, "ids": [7], "options": {"no_repeat_ngram_size": 2}}
    wrong = record | {"prompt_sha256": digest("another text")}
    assert [c.agrees for c in check(model_dir, outputs=[record])] == [False]
    assert [c.agrees for c in check(model_dir, outputs=[wrong])] == [False, None]


def test_whether_a_continuation_is_greedy_is_compared(model_dir: Path) -> None:
    best = int(Engine.open(model_dir).logits(IDS)[-1].argmax())
    record = {"ids": [*IDS, best], "scored": 1, "greedy": True}
    results = check(model_dir, numbers=[record, record | {"greedy": False}])
    assert [c.agrees for c in results] == [True, False]


def test_a_tie_agrees(model_dir: Path) -> None:
    """The record of an output that was published from float16 has a larger `tie`."""
    last = Engine.open(model_dir).logits(IDS)[-1]
    best, second = (int(i) for i in last.argsort()[::-1][:2])
    margin = float(last[best] - last[second])
    record = {"prompt_ids": IDS, "ids": [second]}
    assert margin > 1e-3
    results = check(model_dir, outputs=[record, record | {"tie": 1.01 * margin}])
    assert [c.agrees for c in results] == [False, True]
    assert results[1].detail.endswith("a tie")


def test_the_same_text_in_other_tokens_agrees_where_only_text_was_published(
    tmp_path: Path,
) -> None:
    folder = write_model(tmp_path / "model", small_config(vocab_size=258, eos_token_id=257))
    prompt = list(b"hello")
    first, second, *others = Engine.open(folder).generate(prompt, 4).ids
    assert first != second
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    byte = {i: text for text, i in vocab.items()}
    vocab[byte[first] + byte[second]] = 256
    tokenizer["added_tokens"][0]["id"] = 257
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    record = {"prompt_ids": prompt, "ids": [256, *others]}
    results = check(folder, outputs=[record, record | {"published_as_text": True}])
    assert [c.agrees for c in results] == [False, True]


def test_tensors_are_compared_with_their_digests(tmp_path: Path) -> None:
    config = small_config()
    tensors = random_tensors(config)
    raw = write_model(tmp_path / "raw", config, tensors)
    pack(raw, tmp_path / "packed")
    pack(raw, tmp_path / "bf16", "bf16")
    right = {name: sha256(array.tobytes()).hexdigest() for name, array in tensors.items()}
    wrong = right | {"h.0.mlp.c_fc.weight": right["wte.weight"]}
    for folder in (raw, tmp_path / "packed"):
        results = check(folder, digests=[{"tensors": right}, {"tensors": wrong}])
        assert [c.agrees for c in results] == [True, False]
        assert results[1].detail.endswith("the first that differs: h.0.mlp.c_fc.weight")
    (not_checked,) = check(tmp_path / "bf16", digests=[{"tensors": right}])
    assert not_checked.agrees is None
    assert "BF16" in not_checked.detail


def test_prompts_are_compared_with_the_tokenizer(model_dir: Path, tmp_path: Path) -> None:
    engine = Engine.open(model_dir)
    made = engine.generate_ids(engine.encode_prompt("ab"), 3)
    right = {"prompt_ids": engine.encode_prompt("ab"), "prompt_sha256": digest("ab"), "ids": made}
    assert [c.agrees for c in check(model_dir, outputs=[right])] == [True, True]
    (prompts, _) = check(model_dir, outputs=[right | {"prompt_sha256": digest("ba")}])
    assert prompts == (False, f"tokenizer: the ids {right['prompt_ids']} decode to 'ab'")
    small = write_model(tmp_path / "small", small_config(vocab_size=300))
    unknown = {"prompt_ids": [299], "prompt_sha256": digest("ab"), "ids": [299]}
    assert check(small, outputs=[unknown])[0] == (
        False,
        "tokenizer: the ids [299] are not in the vocabulary",
    )
    bare = write_model(tmp_path / "bare", tokenizer=False)
    assert check(bare, outputs=[right])[0].agrees is None


def test_every_record_has_a_known_model_a_source_and_a_license() -> None:
    published = read_published()
    for kind in ("outputs", "numbers", "digests"):
        assert published[kind]
        for record in published[kind]:
            assert record["model"] in published["shapes"]
            assert record["source"]
            assert record["licence"]


def test_the_published_ids_match_the_published_tokenizer(shared_data: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.fspath(shared_data / "gpt2-tokenizer" / "tokenizer.json"))
    records = [r for r in read_published()["outputs"] if "prompt_sha256" in r]
    assert len(records) > 30
    for record in records:
        prompt = tokenizer.decode(record["prompt_ids"], skip_special_tokens=False)
        assert digest(prompt) == record["prompt_sha256"]
        assert tokenizer.encode(prompt).ids == record["prompt_ids"]
        assert tokenizer.encode(tokenizer.decode(record["ids"])).ids == record["ids"]


def test_the_shape_selects_the_published_model(shared_data: Path) -> None:
    published = read_published()
    tiny = Engine.open(shared_data / "tiny-random-gpt2")
    assert published_name(tiny, published) == "tiny-random-gpt2"
    assert published_name(Engine.open(DEMO), published) is None
