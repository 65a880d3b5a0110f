"""Invalid files: each is a `CheckpointError` that names the file and the problem."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from gpt2core import Engine
from gpt2core.errors import CheckpointError
from gpt2core.files.safetensors import MAX_HEADER_BYTES, open_safetensors
from tests.support.models import random_tensors, small_config, write_model

GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def safetensors_bytes(header: Any, data: bytes = bytes(24)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": GOOD["a"] | changes}


def with_second(begin: int, end: int) -> dict[str, Any]:
    return GOOD | {"b": {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}}


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "0 bytes"),
    "seven bytes": (bytes(7), "7 bytes"),
    "header longer than the file": ((1000).to_bytes(8, "little") + b"{}", "truncated"),
    "header over the format's limit": (
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}",
        "over the format's",
    ),
    "header length near 2**64": (b"\xff" * 8 + b"{}", "over the format's"),
    "no header": (bytes(8), "does not begin"),
    "not UTF-8": (safetensors_bytes(b'{"\xff": 1}'), "not UTF-8"),
    "not JSON": (safetensors_bytes(b"{nonsense"), "not JSON"),
    "an array": (safetensors_bytes(b"[]"), "does not begin"),
    "nested without end": (safetensors_bytes(b'{"a":' * 100_000), "not JSON"),
    "a number of 5,000 digits": (
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}"),
        "not JSON",
    ),
    "the same tensor twice": (
        safetensors_bytes(b'{"a":' + json.dumps(GOOD["a"]).encode() + b',"a":{}}'),
        "duplicate key",
    ),
    "the same key twice inside": (
        safetensors_bytes(b'{"a":{"dtype":"F32","dtype":"F64"}}'),
        "duplicate key",
    ),
    "an entry that is no object": (safetensors_bytes({"a": 5}), "lacks dtype"),
    "an entry without a shape": (
        safetensors_bytes({"a": {"dtype": "F32", "data_offsets": [0, 24]}}),
        "lacks dtype",
    ),
    "four-bit numbers that end inside of a byte": (
        safetensors_bytes(entry(dtype="F4", shape=[47])),
        "whole byte",
    ),
    "six-bit numbers over the span": (
        safetensors_bytes(entry(dtype="F6_E2M3", shape=[12])),
        "needs 9 bytes",
    ),
    "an unknown dtype": (safetensors_bytes(entry(dtype="F31")), "dtype 'F31'"),
    "a dtype that is no string": (safetensors_bytes(entry(dtype=["F32"])), "dtype"),
    "a negative size": (safetensors_bytes(entry(shape=[-2, -3])), "shape"),
    "a size that is true": (safetensors_bytes(entry(shape=[True, 6])), "shape"),
    "a size that is no integer": (safetensors_bytes(entry(shape=[2.0, 3])), "shape"),
    "a shape that is no list": (safetensors_bytes(entry(shape=6)), "shape"),
    "33 dimensions": (safetensors_bytes(entry(shape=[1] * 32 + [6])), "shape"),
    "sizes whose product overflows": (
        safetensors_bytes(entry(shape=[1 << 62, 4, 6])),
        "needs",
    ),
    "shape times dtype over the span": (safetensors_bytes(entry(shape=[2, 4])), "needs 32 bytes"),
    "shape times dtype under the span": (safetensors_bytes(entry(shape=[5])), "needs 20 bytes"),
    "empty in one dimension and too large in another": (
        safetensors_bytes({"a": GOOD["a"] | {"shape": [0, 1 << 62], "data_offsets": [0, 0]}}, b""),
        "2**56",
    ),
    "metadata that is a list": (safetensors_bytes(GOOD | {"__metadata__": [1]}), "__metadata__"),
    "metadata that is not text": (
        safetensors_bytes(GOOD | {"__metadata__": {"a": 1}}),
        "__metadata__",
    ),
    "a number that JSON lacks": (safetensors_bytes(b'{"a": NaN}'), "not JSON"),
    "a negative offset": (safetensors_bytes(entry(data_offsets=[-24, 0])), "data_offsets"),
    "offsets the wrong way round": (safetensors_bytes(entry(data_offsets=[24, 0])), "data_offsets"),
    "three offsets": (safetensors_bytes(entry(data_offsets=[0, 12, 24])), "data_offsets"),
    "offsets beyond the file": (safetensors_bytes(entry(data_offsets=[24, 48])), "truncated"),
    "offsets near 2**64": (
        safetensors_bytes(entry(data_offsets=[(1 << 63) - 25, (1 << 63) - 1])),
        "truncated",
    ),
    "tensors that overlap": (safetensors_bytes(with_second(20, 24)), "overlaps"),
    "two tensors in one place": (safetensors_bytes(GOOD | {"b": GOOD["a"]}), "overlaps"),
    "a gap between tensors": (safetensors_bytes(with_second(26, 30), bytes(30)), "gap"),
    "a gap at the beginning": (
        safetensors_bytes(entry(data_offsets=[4, 28]), bytes(28)),
        "gap",
    ),
    "bytes behind the last tensor": (safetensors_bytes(GOOD, bytes(25)), "trailing"),
    "bytes behind nothing": (safetensors_bytes({}, b"x"), "trailing"),
    "truncated by one byte": (safetensors_bytes(GOOD, bytes(23)), "truncated"),
}


def test_a_truncated_file_is_named_with_both_sizes_and_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE["truncated by one byte"][0])
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(path)
    assert str(caught.value) == (
        f"{path}: tensor 'a' ends at byte 24 of the data, which has 23: the file is truncated,"
        " download it again"
    )


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_breaks_the_format_is_rejected(tmp_path: Path, case: str) -> None:
    content, words = HOSTILE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(path)
    assert caught.value.file == str(path)
    assert words in str(caught.value)


def test_the_valid_counterpart_of_the_invalid_files_opens(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"__metadata__": {"format": "pt"}} | GOOD))
    assert open_safetensors(path)["a"].data.shape == (2, 3)


@pytest.mark.parametrize(
    "header",
    [
        GOOD | {"__metadata__": None},
        entry(stride=1),
        entry(quantization={"axis": [0, 1], "note": None}),
    ],
)
def test_headers_without_metadata_or_with_extra_keys_are_read_like_the_library(
    tmp_path: Path, header: dict[str, Any]
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(header))
    check_read_like_the_library_or_rejected(path)
    assert open_safetensors(path)["a"].data.shape == (2, 3)


@pytest.mark.parametrize(
    ("dtype", "elements"),
    [("F4", 48), ("F6_E2M3", 32), ("F6_E3M2", 32), ("F8_E8M0", 24), ("F8_E4M3FNUZ", 24),
     ("F8_E5M2FNUZ", 24), ("C64", 3), ("F8_E4M3", 24), ("F8_E5M2", 24), ("I64", 3)],
)  # fmt: skip
def test_every_dtype_of_the_library_is_accepted(tmp_path: Path, dtype: str, elements: int) -> None:
    from safetensors import deserialize

    content = safetensors_bytes(entry(dtype=dtype, shape=[elements]), bytes(range(24)))
    deserialize(content)
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert open_safetensors(path)["a"].data.tobytes() == bytes(range(24))


def test_empty_tensors_and_scalars_open(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {
        "none": {"dtype": "F32", "shape": [0, 5], "data_offsets": [0, 0]},
        "one": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "end": {"dtype": "U8", "shape": [0], "data_offsets": [4, 4]},
    }
    path.write_bytes(safetensors_bytes(header, bytes(4)))
    shapes = {name: t.data.shape for name, t in open_safetensors(path).items()}
    assert shapes == {"none": (0, 5), "one": (), "end": (0,)}


def test_a_header_with_many_tensors_is_read_in_linear_time_and_names_a_late_duplicate(
    tmp_path: Path,
) -> None:
    names = [f'"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(100_000)]
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(("{" + ",".join([*names, names[-1]]) + "}").encode(), b""))
    with pytest.raises(CheckpointError, match="t99999"):
        open_safetensors(path)


def test_control_characters_of_a_tensor_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"\x1b[2J\ud800": GOOD["a"] | {"dtype": "F31"}}))
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(path)
    assert str(caught.value).isascii()
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "unreadable name"])
def test_special_files_are_rejected_without_blocking(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "unreadable name":
        path = tmp_path / ("x" * 300)
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(path)
    assert caught.value.file == str(path)


Change = Callable[[dict[str, Any]], Any]


def renamed(old: str, new: str) -> Change:
    return lambda tensors: tensors.__setitem__(new, tensors.pop(old))


def replaced(name: str, array: Any) -> Change:
    return lambda tensors: tensors.__setitem__(name, array)


@pytest.mark.parametrize(
    ("change", "tensor", "words"),
    [
        (lambda t: t.pop("h.1.mlp.c_fc.bias"), "h.1.mlp.c_fc.bias", "missing"),
        (lambda t: t.pop("wte.weight"), "wte.weight", "missing"),
        (replaced("ln_f.bias", np.zeros(25, np.float32)), "ln_f.bias", "has shape [25]"),
        (replaced("wpe.weight", np.zeros((63, 24), np.float32)), "wpe.weight", "has shape"),
        (replaced("ln_f.bias", np.zeros(24, np.int32)), "ln_f.bias", "has dtype I32"),
        (replaced("ln_f.bias", np.zeros(24, np.float64)), "ln_f.bias", "has dtype F64"),
        (renamed("h.1.ln_1.bias", "h.7.ln_1.bias"), "h.7.ln_1.bias", "not part"),
        (
            replaced("h.0.attn.c_attn.lora_A", np.zeros(3, np.float32)),
            "h.0.attn.c_attn.lora_A",
            "not part",
        ),
    ],
)
def test_tensors_that_do_not_match_the_configuration_are_named(
    tmp_path: Path, change: Change, tensor: str, words: str
) -> None:
    tensors: dict[str, Any] = dict(random_tensors(small_config()))
    change(tensors)
    folder = write_model(tmp_path / "model", tensors=tensors)
    with pytest.raises(CheckpointError) as caught:
        Engine.open(folder)
    assert caught.value.tensor == tensor
    assert words in str(caught.value)
    assert caught.value.file == str(folder / "model.safetensors")


def test_an_untied_model_without_lm_head_is_rejected(tmp_path: Path) -> None:
    tensors = random_tensors(small_config())
    folder = write_model(tmp_path / "model", small_config(tie_word_embeddings=False), tensors)
    with pytest.raises(CheckpointError, match="lm_head"):
        Engine.open(folder)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"wte.weight": "../model.safetensors"}}, "plain file name"),
        ({"weight_map": {"wte.weight": "/etc/passwd"}}, "plain file name"),
        ({"weight_map": {"wte.weight": ".."}}, "plain file name"),
        ({"weight_map": {"wte.weight": ""}}, "plain file name"),
        ({"weight_map": {"wte.weight": 5}}, "plain file name"),
        ({"weight_map": {"wte.weight": "a\0b"}}, "file name"),
        ({"weight_map": {"wte.weight": "\ud800.safetensors"}}, "file name"),
        ({"weight_map": {"wte.weight": "model-00001-of-00002.safetensors"}}, "is missing"),
        ({"weight_map": {}}, "weight_map"),
        ({"weight_map": []}, "weight_map"),
        ({}, "weight_map"),
        ([], "not an object"),
    ],
)
def test_a_shard_index_with_paths_outside_is_rejected(
    tmp_path: Path, index: Any, words: str
) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=words) as caught:
        Engine.open(folder)
    assert caught.value.file.endswith("model.safetensors.index.json")


def test_a_tensor_in_two_shards_is_rejected(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "a.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").rename(folder / "b.safetensors")
    index = {"weight_map": {"wte.weight": "a.safetensors", "wpe.weight": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is also in"):
        Engine.open(folder)


def test_nan_weights_are_reported_when_they_are_used(tmp_path: Path) -> None:
    tensors = random_tensors(small_config())
    tensors["ln_f.bias"][3] = np.nan
    engine = Engine.open(write_model(tmp_path / "model", tensors=tensors))
    with pytest.raises(CheckpointError, match=r"logits are NaN.*download the model again"):
        engine.generate("a")


def check_read_like_the_library_or_rejected(path: Path) -> None:
    """Accepted files are read like by `safetensors`; all others are a CheckpointError."""
    try:
        tensors = open_safetensors(path)
    except CheckpointError:
        return
    assert {n: t.data.shape for n, t in tensors.items()} == {
        n: a.shape for n, a in load_file(path).items()
    }


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 255), st.sampled_from("=+-")), max_size=6
)


def mutate(content: bytes, mutations: list[tuple[int, int, str]]) -> bytes:
    raw = bytearray(content)
    for at, value, how in mutations:
        if how == "=" and at < len(raw):
            raw[at] = value
        elif how == "+":
            raw.insert(min(at, len(raw)), value)
        elif how == "-" and at < len(raw):
            del raw[at]
    return bytes(raw)


SEED_FILE = safetensors_bytes(
    with_second(24, 30)
    | {"c": {"dtype": "F32", "shape": [0, 7], "data_offsets": [30, 30]}}
    | {"__metadata__": {"format": "pt"}},
    bytes(30),
)


@given(MUTATIONS)
def test_a_mutated_file_is_read_like_the_library_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, mutations: list[tuple[int, int, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(mutate(SEED_FILE, mutations))
    check_read_like_the_library_or_rejected(path)


@pytest.mark.slow
@hypothesis_settings(max_examples=20_000)
@given(MUTATIONS)
def test_many_mutated_files_are_read_like_the_library_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, mutations: list[tuple[int, int, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(mutate(SEED_FILE, mutations))
    check_read_like_the_library_or_rejected(path)
