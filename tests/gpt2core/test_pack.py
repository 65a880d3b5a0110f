"""Packed model directories: their content, and that they give the same tokens."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gpt2core import Engine
from gpt2core.errors import CheckpointError, InvalidArgument, ModelError
from gpt2core.files.manifest import check_sizes, read_manifest
from gpt2core.files.names import MANIFEST_FILE, PACKED_FILE, TABLES_FILE
from gpt2core.files.packed import PRECISIONS, is_matrix, reading_order, stored_name
from gpt2core.kernels.reference import rows_to_float32, to_float32
from gpt2core.pack import pack, quantize, to_bfloat16
from tests.conftest import DEMO, ROOT
from tests.support.kernels import needs_native
from tests.support.models import (
    assert_same_weights,
    random_tensors,
    small_config,
    uniform,
    write_model,
    write_sharded_model,
)

PROMPT = "Once upon a time there was"


@pytest.fixture(scope="module", params=PRECISIONS)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / str(request.param)
    pack(DEMO, folder, request.param)
    return folder


def precision_of(folder: Path) -> str:
    return folder.name


def header_of(path: Path) -> tuple[int, dict[str, Any]]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return 8 + length, json.loads(raw[8 : 8 + length])


def test_a_packed_directory_has_four_files_listed_in_its_manifest(packed: Path) -> None:
    names = {path.name for path in packed.iterdir()}
    assert names == {PACKED_FILE, TABLES_FILE, "config.json", MANIFEST_FILE}
    manifest = read_manifest(str(packed))
    assert manifest is not None
    assert set(manifest.files) == names - {MANIFEST_FILE}
    check_sizes(str(packed), manifest)
    for name, entry in manifest.files.items():
        assert hashlib.sha256((packed / name).read_bytes()).hexdigest() == entry.sha256
    assert json.loads(manifest.raw)["precision"] == precision_of(packed)


def test_the_same_input_gives_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    pack(DEMO, tmp_path / "again", precision_of(packed))
    for path in packed.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", [PACKED_FILE, TABLES_FILE])
def test_every_tensor_is_aligned_to_64_bytes(packed: Path, name: str) -> None:
    begins, header = header_of(packed / name)
    assert begins % 64 == 0
    offsets = [v["data_offsets"][0] for k, v in header.items() if not k.startswith("__")]
    assert len(offsets) > 5
    assert all(offset % 64 == 0 for offset in offsets)


def test_the_safetensors_library_reads_the_packed_file(packed: Path) -> None:
    for name in (PACKED_FILE, TABLES_FILE):
        assert len(load_file(packed / name)) > 5 if precision_of(packed) != "bf16" else True
        with safe_open(packed / name, "np") as file:
            assert "source" in file.metadata()
            assert len(list(file.keys())) > 5


def test_tensors_are_in_reading_order_without_masks(packed: Path) -> None:
    _, header = header_of(packed / PACKED_FILE)
    names = [n for n in header if not n.startswith("__") and not n.endswith(".scale")]
    config = Engine.open(packed).config
    assert names == [stored_name(n) for n in reading_order(config, has_head=False)]
    assert "h.0.mlp.c_proj.weight.T" in names
    assert "h.0.attn.c_attn.weight.T" in names
    assert names[0] == "wpe.weight"
    assert names[-1] == "wte.weight"


def test_the_metadata_has_the_digests_of_the_source(packed: Path) -> None:
    source = json.loads(header_of(packed / PACKED_FILE)[1]["__metadata__"]["source"])
    weights = hashlib.sha256((DEMO / "model.safetensors").read_bytes()).hexdigest()
    assert source["model.safetensors"] == weights
    assert set(source) == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_packed_model_gives_the_same_tokens(packed: Path) -> None:
    original, engine = Engine.open(DEMO), Engine.open(packed)
    ids = original.encode_prompt(PROMPT)
    assert engine.encode_prompt(PROMPT) == ids
    difference = np.abs(engine.logits(ids) - original.logits(ids)).max()
    assert difference <= {"f32": 1e-4, "bf16": 0.1, "int8": 0.5}[precision_of(packed)]
    if precision_of(packed) == "f32":
        assert_same_weights(engine, original)
        assert engine.generate(PROMPT, 100)[:4] == original.generate(PROMPT, 100)[:4]
    else:
        assert engine.generate_ids(ids, 3) == original.generate_ids(ids, 3)


def test_packed_files_are_sufficient(packed: Path, tmp_path: Path) -> None:
    for name in (PACKED_FILE, TABLES_FILE):
        shutil.copy(packed / name, tmp_path)
    assert (
        Engine.open(tmp_path).generate(PROMPT, 5).text
        == Engine.open(packed).generate(PROMPT, 5).text
    )


def test_smaller_precisions_are_smaller(tmp_path: Path) -> None:
    sizes = {}
    for precision in PRECISIONS:
        pack(DEMO, tmp_path / precision, precision)
        sizes[precision] = (tmp_path / precision / PACKED_FILE).stat().st_size
    assert sizes["bf16"] < 0.6 * sizes["f32"]
    assert sizes["int8"] < 0.35 * sizes["f32"]


def test_bfloat16_rounds_to_nearest_even() -> None:
    values = uniform(7, (4000,)) * np.float32(1e3)
    ties = (np.arange(2000, dtype=np.uint32) * 0x10000 + 0x3F808000).view(np.float32)
    numbers = np.concatenate([values, ties, np.float32([0, -0.0, np.inf, -np.inf, np.nan])])
    found = (to_bfloat16(numbers).astype(np.uint32) << 16).view(np.float32)
    for value, rounded in zip(numbers[:-1], found[:-1], strict=True):
        bits = int(np.float32(rounded).view(np.uint32)) >> 16
        near = [
            np.uint32((bits + step) << 16).view(np.float32) for step in (-1, 1) if bits + step >= 0
        ]
        if np.isfinite(value):
            distance = abs(float(value) - float(rounded))
            assert all(distance <= abs(float(value) - float(n)) for n in near if np.isfinite(n))
    assert (to_bfloat16(ties) & 1 == 0).all()
    assert np.isnan(found[-1])


@pytest.mark.parametrize("shape", [(64, 5), (130, 3), (1, 1), (63, 64)])
@pytest.mark.parametrize("axis", [0, 1])
def test_int8_errors_are_at_most_half_a_step_of_the_group(
    shape: tuple[int, int], axis: int
) -> None:
    values: NDArray[np.float32] = uniform(3, shape)
    values[0, 0] = 100
    integers, scales = quantize(values, axis)
    assert scales.shape == tuple(-(-n // 64) if i == axis else n for i, n in enumerate(shape))
    spread = np.repeat(scales, 64, axis)[: shape[0], : shape[1]]
    assert (np.abs(integers * spread - values) <= spread / 2 * 1.0001).all()
    assert np.abs(integers).max() == 127


def test_a_group_of_zeros_stays_zero() -> None:
    integers, scales = quantize(np.zeros((128, 2), np.float32), 0)
    assert not integers.any()
    assert not scales.any()


def test_an_untied_head_is_kept(tmp_path: Path) -> None:
    for tied in (True, False):
        config = small_config(tie_word_embeddings=tied)
        tensors = random_tensors(config)
        tensors["lm_head.weight"] = uniform(99, tensors["wte.weight"].shape)
        folder = write_model(tmp_path / f"own-{tied}", config, tensors)
        for precision in PRECISIONS:
            pack(folder, tmp_path / f"packed-{tied}-{precision}", precision)
            found = Engine.open(tmp_path / f"packed-{tied}-{precision}").logits([1, 2, 3])
            assert np.abs(found - Engine.open(folder).logits([1, 2, 3])).max() < 0.5


def test_a_head_equal_to_the_embeddings_is_stored_once(tmp_path: Path) -> None:
    tensors = random_tensors(small_config())
    tensors["lm_head.weight"] = tensors["wte.weight"]
    pack(write_model(tmp_path / "a", tensors=tensors), tmp_path / "b")
    assert "lm_head.weight" not in header_of(tmp_path / "b" / PACKED_FILE)[1]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("factor", [2.0, -1.0, 0.25])
def test_a_scaled_copy_of_the_embeddings_is_an_untied_head(
    tmp_path: Path, precision: str, factor: float
) -> None:
    tensors = random_tensors(small_config())
    factors = np.where(np.arange(257) % 2, np.float32(factor), np.float32(1))
    tensors["lm_head.weight"] = tensors["wte.weight"] * factors[:, None]
    raw = write_model(tmp_path / "a", small_config(), tensors, tokenizer=False)
    pack(raw, tmp_path / "b", precision)
    packed = Engine.open(tmp_path / "b").logits([1, 2, 3])
    # The same product as with tied embeddings, apart from the factors.
    del tensors["lm_head.weight"]
    plain = write_model(tmp_path / "c", small_config(), tensors, tokenizer=False)
    pack(plain, tmp_path / "d", precision)
    expected = Engine.open(tmp_path / "d").logits([1, 2, 3]) * factors
    np.testing.assert_allclose(packed, expected, rtol=0, atol=1e-4)


def test_shards_are_packed_into_one_file(tmp_path: Path) -> None:
    folder = write_sharded_model(tmp_path / "a")
    pack(folder, tmp_path / "b")
    assert_same_weights(Engine.open(tmp_path / "b"), Engine.open(folder))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_sources_are_converted_exactly(tmp_path: Path, dtype: str) -> None:
    from tests.support.models import write_safetensors

    tensors = random_tensors(small_config())
    stored = {
        name: (dtype, t.astype(np.float16) if dtype == "F16" else to_bfloat16(t))
        for name, t in tensors.items()
    }
    folder = write_model(tmp_path / "a")
    write_safetensors(folder / "model.safetensors", stored)
    pack(folder, tmp_path / "b")
    assert_same_weights(Engine.open(tmp_path / "b"), Engine.open(folder))


def test_a_model_without_a_tokenizer_is_packed_without_one(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a", tokenizer=False)
    done = pack(folder, tmp_path / "b")
    assert "no tokenizer" in str(done.tokenizer_problem)
    assert Engine.open(tmp_path / "b").generate_ids([1], 2)


def test_the_engine_uses_the_precision_of_the_packed_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "both")
    pack(folder, folder, "int8")  # next to the raw files
    raw = write_model(tmp_path / "raw")
    exact = Engine.open(raw).logits([1, 2])
    assert (Engine.open(folder, precision="f32").logits([1, 2]) == exact).all()
    assert (Engine.open(folder).logits([1, 2]) != exact).any()
    assert (Engine.open(folder, precision="int8").logits([1, 2]) != exact).any()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).unlink()
    for wanted in ("f32", "bf16"):
        with pytest.raises(InvalidArgument, match="has precision int8"):
            Engine.open(folder, precision=wanted)
    with pytest.raises(InvalidArgument, match="has precision f32"):
        Engine.open(raw, precision="bf16")


def test_a_packed_file_of_another_model_is_not_used(tmp_path: Path) -> None:
    pack(write_model(tmp_path / "a", small_config(n_positions=32)), tmp_path / "a")
    folder = write_model(tmp_path / "b")
    shutil.copy(tmp_path / "a" / PACKED_FILE, folder)
    assert Engine.open(folder).config.n_positions == 64
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="packed for another network"):
        Engine.open(folder)


def test_a_corrupted_packed_file_is_rejected(tmp_path: Path) -> None:
    pack(write_model(tmp_path / "a"), tmp_path / "b", "int8")
    path = tmp_path / "b" / PACKED_FILE
    arrays = load_file(path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    for name in ("h.0.mlp.c_fc.weight.T", "h.0.mlp.c_fc.weight.T.scale", "wpe.weight"):
        save_file({k: v for k, v in arrays.items() if k != name}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=name):
            Engine.open(tmp_path / "b")
    wrong = arrays | {"wte.weight.scale": arrays["wte.weight.scale"][:-1]}
    save_file(wrong, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"wte\.weight\.scale"):
        Engine.open(tmp_path / "b")
    for broken in ({}, metadata | {"precision": "int4"}, metadata | {"config": "{"}):
        save_file(arrays, path, metadata=broken)
        with pytest.raises(CheckpointError):
            Engine.open(tmp_path / "b")


def test_only_matrices_are_quantized(packed: Path) -> None:
    _, header = header_of(packed / PACKED_FILE)
    smaller = {"f32": "F32", "bf16": "BF16", "int8": "I8"}[precision_of(packed)]
    for name, entry in header.items():
        if not name.startswith("__") and not name.endswith(".scale"):
            assert entry["dtype"] == (smaller if is_matrix(name.removesuffix(".T")) else "F32")


def test_a_failed_pack_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a")
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError):
        pack(folder, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(InvalidArgument, match="int4"):
        pack(DEMO, tmp_path / "b", "int4")
    with pytest.raises(ModelError, match="no such"):
        pack(tmp_path / "nothing", tmp_path / "b")


def test_embedding_rows_equal_those_of_the_whole_matrix(packed: Path) -> None:
    table = Engine.open(packed)._forward.weights.tensors["wte.weight"]
    ids = np.array([0, 5, 2047])
    assert (rows_to_float32(table, ids) == to_float32(table)[ids]).all()


def test_the_pack_command_reports_size_and_manifest(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpt2core", "pack", str(DEMO), str(tmp_path / "p")]
    done = subprocess.run(
        [*command, "--precision", "int8"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    manifest = hashlib.sha256((tmp_path / "p" / MANIFEST_FILE).read_bytes()).hexdigest()
    assert f"SHA-256 of the manifest (ModelSha256 pins it): {manifest}" in done.stderr
    assert "replaced" not in done.stderr
    again = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert f"{tmp_path / 'p'}: replaced the packed model" in again.stderr
    failed = subprocess.run(
        [*command[:-2], str(tmp_path / "none"), str(tmp_path / "q")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr


def test_a_model_is_not_packed_over_the_raw_files_of_another(tmp_path: Path) -> None:
    source, other = write_model(tmp_path / "a"), write_model(tmp_path / "b", small_config(n_head=2))
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    with pytest.raises(ModelError, match="pack into another directory"):
        pack(source, other)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


def test_packing_a_packed_directory_is_rejected(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is already packed"):
        pack(packed, tmp_path)


def test_the_weights_of_each_output_are_contiguous(packed: Path) -> None:
    weights = Engine.open(packed)._forward.weights
    for matrix in (*weights.block(0).mlp, weights.block(0).attn.c_attn, weights.lm_head):
        assert matrix.tensor.is_transposed
        assert matrix.tensor.data.T.flags.c_contiguous
        if precision_of(packed) == "int8":
            assert matrix.tensor.scale is not None
            assert matrix.tensor.scale.data.T.flags.c_contiguous


def outdate(folder: Path) -> None:
    """Change the format version of the packed file to the previous one, of the same length."""
    path = folder / PACKED_FILE
    path.write_bytes(path.read_bytes().replace(b"gpt2-packed-3", b"gpt2-packed-2", 1))


def test_raw_files_replace_a_packed_file_of_another_version_with_a_warning(
    tmp_path: Path,
) -> None:
    folder = write_model(tmp_path / "a")
    exact = Engine.open(folder).logits([1, 2])
    pack(folder, folder, "int8")
    outdate(folder)
    with pytest.warns(UserWarning, match="not gpt2-packed-3: pack the model again; using the raw"):
        engine = Engine.open(folder)
    assert (engine.logits([1, 2]) == exact).all()
    with pytest.raises(CheckpointError, match="pack the model again"):
        Engine.open(folder, precision="int8")


def test_a_packed_file_of_another_version_without_raw_files_is_an_error_with_the_fix(
    tmp_path: Path,
) -> None:
    pack(write_model(tmp_path / "a"), tmp_path / "b")
    outdate(tmp_path / "b")
    with pytest.raises(
        CheckpointError, match=r"has the format .*, not gpt2-packed-3: pack the model again"
    ):
        Engine.open(tmp_path / "b")


def test_info_describes_kernels_network_and_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpt2core", "info"]

    def lines(*arguments: str, **environ: str) -> list[str]:
        done = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, **environ},
        )
        return done.stdout.splitlines()

    (kernels,) = lines(GPT2_KERNELS="numpy")
    assert kernels == "kernels:    NumPy, set by GPT2_KERNELS"
    native = needs_native()
    (kernels,) = lines()
    assert kernels.startswith(f"kernels:    native, {native}, ")
    pack(DEMO, tmp_path, "int8")
    shown = lines(str(tmp_path))
    assert "4.6 million parameters" in shown[1]
    assert shown[2] == f"weights:    I8 [n_out, n_in], {tmp_path / PACKED_FILE}"
