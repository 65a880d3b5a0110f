import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt2core import Engine, model
from gpt2core.config import GPT2Config
from gpt2core.files.checkpoint import expected_shapes, open_checkpoint
from gpt2core.files.safetensors import open_safetensors
from gpt2core.kernels.reference import to_float32
from tests.support.models import random_tensors, small_config, write_model, write_safetensors

PROMPT = [5, 250, 17, 3]


def logits_of(folder: Path) -> np.ndarray:
    return Engine.open(folder).logits(PROMPT)


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers (rounded toward zero)."""
    return (array.view(np.uint32) >> 16).astype(np.uint16)


def test_tensors_equal_those_of_the_safetensors_library(model_dir: Path) -> None:
    path = model_dir / "model.safetensors"
    ours, theirs = open_safetensors(path), load_file(path)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(to_float32(ours[name]), array)


def test_tensors_are_read_only_views_of_the_mapping(model_dir: Path) -> None:
    tensors = open_safetensors(model_dir / "model.safetensors")
    assert all(not t.data.flags.writeable and not t.data.flags.owndata for t in tensors.values())
    assert all(t.data.flags.aligned == t.is_aligned for t in tensors.values())
    aligned = next(t for t in tensors.values() if t.is_aligned)
    assert np.shares_memory(to_float32(aligned), aligned.data)


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    size = 1 << 30  # a sparse file of a gigabyte
    raw = json.dumps(
        {"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    ).encode()
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor = open_safetensors(path)["a"]
    assert tensor.items.nbytes == size
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert tensor.data.nbytes == size
    assert faults < 1000  # of 262,144 pages


def test_keys_with_a_transformer_prefix_are_the_same_model(tmp_path: Path, model_dir: Path) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    prefixed = write_model(
        tmp_path / "prefixed",
        tensors={f"transformer.{name}": array for name, array in tensors.items()},
    )
    np.testing.assert_array_equal(logits_of(prefixed), logits_of(model_dir))


def test_stored_causal_masks_are_ignored(tmp_path: Path, model_dir: Path) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.uint8))
    tensors["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
    masked = write_model(tmp_path / "masked", tensors=tensors)
    np.testing.assert_array_equal(logits_of(masked), logits_of(model_dir))


def test_heads_of_other_tasks_are_ignored(tmp_path: Path, model_dir: Path) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    tensors["score.weight"] = np.zeros((2, 24), np.float32)
    other = write_model(tmp_path / "other", tensors=tensors)
    np.testing.assert_array_equal(logits_of(other), logits_of(model_dir))


def test_shards_are_the_same_model(tmp_path: Path, model_dir: Path) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    folder = write_model(tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[:5], names[5:11], names[11:])):
        shard = f"model-{i + 1:05}-of-00003.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    np.testing.assert_array_equal(logits_of(folder), logits_of(model_dir))


def test_float16_is_converted_exactly(tmp_path: Path) -> None:
    halves = {n: a.astype(np.float16) for n, a in random_tensors(small_config()).items()}
    half = write_model(tmp_path / "half", tensors=halves)
    full = write_model(
        tmp_path / "full", tensors={n: a.astype(np.float32) for n, a in halves.items()}
    )
    np.testing.assert_array_equal(logits_of(half), logits_of(full))


def test_bfloat16_is_converted_exactly(tmp_path: Path) -> None:
    tensors = random_tensors(small_config())
    cut = {n: (a.view(np.uint32) >> 16 << 16).view(np.float32) for n, a in tensors.items()}
    full = write_model(tmp_path / "full", tensors=cut)
    brain = write_model(tmp_path / "brain")
    write_safetensors(
        brain / "model.safetensors", {n: ("BF16", to_bfloat16(a)) for n, a in tensors.items()}
    )
    np.testing.assert_array_equal(logits_of(brain), logits_of(full))


@pytest.mark.parametrize("pad", [0, 1, 2, 3])
def test_weights_can_be_at_any_byte_offset(tmp_path: Path, model_dir: Path, pad: int) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    shifted = write_model(tmp_path / "shifted")
    write_safetensors(
        shifted / "model.safetensors", {n: ("F32", a) for n, a in tensors.items()}, pad
    )
    config = GPT2Config.from_file(shifted / "config.json")
    assert all(to_float32(t).flags.aligned for t in open_checkpoint(shifted, config).values())
    np.testing.assert_array_equal(logits_of(shifted), logits_of(model_dir))


def test_an_untied_lm_head_is_used_for_the_logits(tmp_path: Path) -> None:
    config = small_config(tie_word_embeddings=False)
    tensors = random_tensors(config)
    untied = logits_of(write_model(tmp_path / "untied", config, tensors))
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * 2
    doubled = logits_of(write_model(tmp_path / "doubled", config, tensors))
    np.testing.assert_allclose(doubled, 2 * untied, rtol=1e-5)


def test_a_stored_lm_head_equal_to_the_embeddings_changes_nothing(
    tmp_path: Path, model_dir: Path
) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    tensors["lm_head.weight"] = tensors["wte.weight"].copy()
    tied = write_model(tmp_path / "tied", tensors=tensors)
    np.testing.assert_array_equal(logits_of(tied), logits_of(model_dir))


def test_a_stored_lm_head_that_differs_is_used_despite_tie_word_embeddings(
    tmp_path: Path, model_dir: Path
) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    tensors["lm_head.weight"] = 2 * tensors["wte.weight"]
    untied = write_model(tmp_path / "untied", tensors=tensors)
    np.testing.assert_allclose(logits_of(untied), 2 * logits_of(model_dir), rtol=1e-5)


def test_embeddings_stored_as_lm_head_are_found(tmp_path: Path, model_dir: Path) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("wte.weight")
    renamed = write_model(tmp_path / "renamed", tensors=tensors)
    np.testing.assert_array_equal(logits_of(renamed), logits_of(model_dir))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(
    name: str, parameters: int
) -> None:
    sizes = {"gpt2": (12, 768), "gpt2-medium": (24, 1024), "gpt2-large": (36, 1280)}
    n_layer, n_embd = sizes.get(name, (48, 1600))
    config = GPT2Config.from_dict({"n_layer": n_layer, "n_embd": n_embd, "n_head": n_embd // 64})
    assert sum(int(np.prod(s)) for s in expected_shapes(config).values()) == parameters


@pytest.mark.parametrize(("pad", "threads"), [(0, 0), (1, 1)])
def test_only_weights_that_need_conversion_are_prepared_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pad: int, threads: int
) -> None:
    tensors = random_tensors(small_config())
    folder = write_model(tmp_path / "model")
    path = folder / "model.safetensors"
    write_safetensors(path, {n: ("F32", a) for n, a in tensors.items()})
    header_bytes = int.from_bytes(path.read_bytes()[:8], "little")
    write_safetensors(path, {n: ("F32", a) for n, a in tensors.items()}, -header_bytes % 4 + pad)
    started: list[Any] = []
    monkeypatch.setattr(model, "start_new_thread", lambda job, _: started.append(job))
    engine = Engine.open(folder, kernels="numpy")
    assert not started  # opening does not read weights
    engine.read_ahead()
    engine.generate_ids(PROMPT, 1)  # would also start it
    assert len(started) == threads
    for job in started:
        job()
    unshifted = Engine.open(write_model(tmp_path / "b", tensors=tensors), kernels="numpy")
    np.testing.assert_allclose(engine.logits(PROMPT), unshifted.logits(PROMPT), atol=1e-6)
