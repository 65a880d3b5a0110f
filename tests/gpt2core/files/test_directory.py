"""Packed files next to their source files, and generation settings."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gpt2core import Engine, Tokenizer
from gpt2core.errors import ConfigError, InvalidArgument, ModelError, TokenizerError
from gpt2core.files.names import PACKED_FILE, TABLES_FILE
from gpt2core.files.packed import PRECISIONS
from gpt2core.files.samples import is_as_recorded, record_sample
from gpt2core.pack import pack
from tests.support.models import (
    Tensors,
    byte_tokenizer,
    random_tensors,
    small_config,
    write_model,
    write_sharded_model,
)

IDS = [1, 2, 3]


def opened_file(folder: Path) -> str:
    """The name of the weights file that was opened."""
    return Path(Engine.open(folder)._forward.weights.tensors["wpe.weight"].file).name


def save_again(folder: Path, change: Callable[[Tensors], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_weights(tensors: Tensors) -> None:
    tensors |= random_tensors(small_config(), seed=5)


def one_bias(tensors: Tensors) -> None:
    tensors["h.1.mlp.c_proj.bias"] += np.float32(1)


def one_number(tensors: Tensors) -> None:
    tensors["wte.weight"][200, 7] += np.float32(0.5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("change", [other_weights, one_bias, one_number])
def test_weights_saved_after_packing_replace_the_packed_file(
    tmp_path: Path, precision: str, change: Callable[[Tensors], None]
) -> None:
    folder = write_model(tmp_path / "model")
    pack(folder, folder, precision)
    assert opened_file(folder) == PACKED_FILE
    save_again(folder, change)
    assert opened_file(folder) == "model.safetensors"
    if precision != "f32":
        with pytest.raises(
            InvalidArgument,
            match=r"was packed in .* before its weights changed: pack the model again",
        ):
            Engine.open(folder, precision=precision)
    pack(folder, folder, precision)
    assert opened_file(folder) == PACKED_FILE


def test_new_file_times_do_not_invalidate_the_packed_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    pack(folder, folder)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    for path in (tmp_path / "copy").iterdir():
        os.utime(path, (1, 1))
    assert opened_file(tmp_path / "copy") == PACKED_FILE


def test_shards_saved_after_packing_replace_the_packed_file(tmp_path: Path) -> None:
    folder = write_sharded_model(tmp_path / "model")
    pack(folder, folder)
    assert opened_file(folder) == PACKED_FILE
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + np.float32(1)
    save_file(tensors, shard)
    assert opened_file(folder) != PACKED_FILE


def test_a_single_file_replaces_a_packed_file_of_shards(tmp_path: Path) -> None:
    folder = write_sharded_model(tmp_path / "model")
    pack(folder, folder)
    shutil.copy(write_model(tmp_path / "other") / "model.safetensors", folder)
    assert opened_file(folder) == "model.safetensors"


def test_incomplete_shards_do_not_replace_the_packed_file(tmp_path: Path) -> None:
    folder = write_sharded_model(tmp_path / "model")
    pack(folder, folder)
    sorted(folder.glob("model-*.safetensors"))[0].unlink()
    assert opened_file(folder) == PACKED_FILE


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_large_file_is_identified_by_samples_of_every_tensor(
    tmp_path: Path, dtype: type[np.floating[Any]]
) -> None:
    path = tmp_path / "model.safetensors"
    tensors: dict[str, NDArray[Any]] = {
        f"t{i}": np.full((700, 256), i, dtype) for i in range(20)
    } | {"bias": np.ones(256, dtype)}
    save_file(tensors, path)
    sample = json.loads(json.dumps(record_sample(str(path))))
    read = sum(end - begin for begin, end in sample["ranges"])
    assert read < path.stat().st_size / 10
    assert is_as_recorded(str(path), sample)
    for name in tensors:
        save_file(tensors | {name: tensors[name] + dtype(1)}, path)
        assert not is_as_recorded(str(path), sample), name


def test_a_changed_tokenizer_replaces_its_compiled_tables(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    pack(folder, folder)
    assert Engine.open(folder).encode_prompt("<user>") == list(b"<user>")
    rust = byte_tokenizer()
    rust.add_tokens(["<user>"])
    rust.save(str(folder / "tokenizer.json"))
    assert Engine.open(folder).tokenizer.encode("<user>") == [257]
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    pack(folder, folder)
    assert Engine.open(folder).tokenizer.encode("<user>") == [257]
    (folder / "tokenizer_config.json").unlink()
    assert Engine.open(folder).tokenizer.encode("a") == list(b"a")


def test_tokenizer_files_replace_tables_of_another_version(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    pack(folder, folder)
    with safe_open(folder / TABLES_FILE, "np") as file:
        metadata = file.metadata() | {"format": "gpt2-tokenizer-1"}
    save_file(load_file(folder / TABLES_FILE), folder / TABLES_FILE, metadata=metadata)
    with pytest.warns(UserWarning, match="pack the model again"):
        assert Tokenizer.open(folder).encode("a") == [97]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="pack the model again"):
        Tokenizer.open(folder)


def test_packing_again_removes_the_previous_packed_files(tmp_path: Path) -> None:
    folder, target = write_model(tmp_path / "model"), tmp_path / "packed"
    compiled = (folder / "tokenizer.json").read_text()
    pack(folder, target)
    fields = json.loads(compiled) | {"normalizer": {"type": "Lowercase"}}
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    (folder / "added_tokens.json").write_text("{}")
    pack(folder, target)
    assert not (target / TABLES_FILE).exists()
    assert (target / "added_tokens.json").exists()
    assert Engine.open(target).encode_prompt("ABC") == list(b"abc")
    (folder / "tokenizer.json").write_text(compiled)
    pack(folder, target)
    assert not (target / "tokenizer.json").exists()
    assert not (target / "added_tokens.json").exists()
    assert Engine.open(target).encode_prompt("ABC") == list(b"ABC")


def test_packing_in_place_again_removes_the_tables_and_no_source(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    pack(folder, folder)
    fields = json.loads((folder / "tokenizer.json").read_text())
    fields["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    before = {path.name for path in folder.iterdir()}
    pack(folder, folder)
    assert {path.name for path in folder.iterdir()} == before - {TABLES_FILE}
    assert Engine.open(folder).encode_prompt("ABC") == list(b"abc")


def with_generation(folder: Path, fields: Any, **config: Any) -> Path:
    write_model(folder)
    (folder / "config.json").write_text(json.dumps(small_config(**config)))
    if fields is not None:
        (folder / "generation_config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("form", ["raw", "packed", "packed file alone", "packed in place"])
@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        (None, (10,)),
        ({"eos_token_id": [256, 10]}, (256, 10)),
        ({"eos_token_id": 7, "bos_token_id": 7}, (7,)),
        ({}, ()),
        ({"eos_token_id": None}, ()),
    ],
)
def test_generation_config_replaces_the_generation_fields_of_config(
    tmp_path: Path, fields: Any, ends: tuple[int, ...], form: str
) -> None:
    folder = with_generation(tmp_path / "model", fields, eos_token_id=10)
    if form == "packed in place":
        pack(folder, folder)
    elif form != "raw":
        pack(folder, tmp_path / "packed")
        folder = tmp_path / "packed"
    if form == "packed file alone":
        for path in folder.iterdir():
            if path.name != PACKED_FILE:
                path.unlink()
    config = Engine.open(folder).config
    assert config.eos_token_ids == ends
    assert config.bos_token_id == (256 if fields is None else fields.get("bos_token_id"))


def test_generation_config_applies_to_packed_models(tmp_path: Path) -> None:
    pack(with_generation(tmp_path / "model", {"eos_token_id": 5}), tmp_path / "packed")
    assert Engine.open(tmp_path / "packed").config.eos_token_ids == (5,)
    (tmp_path / "packed" / "generation_config.json").write_text('{"eos_token_id": [6, 7]}')
    assert Engine.open(tmp_path / "packed").config.eos_token_ids == (6, 7)
    assert opened_file(tmp_path / "packed") == PACKED_FILE


def test_eos_in_config_applies_to_packed_models(tmp_path: Path) -> None:
    pack(write_model(tmp_path / "model"), tmp_path / "packed")
    config = tmp_path / "packed" / "config.json"
    config.write_text(json.dumps(small_config(eos_token_id=[1, 2])))
    assert Engine.open(tmp_path / "packed").config.eos_token_ids == (1, 2)
    config.write_text(json.dumps(small_config(n_head=2)))
    with pytest.raises(ModelError, match="packed for another network"):
        Engine.open(tmp_path / "packed")


def test_a_removed_generation_config_no_longer_applies(tmp_path: Path) -> None:
    folder = with_generation(tmp_path / "model", {"eos_token_id": 5}, eos_token_id=10)
    pack(folder, folder)
    (folder / "generation_config.json").unlink()
    assert Engine.open(folder).config.eos_token_ids == (10,)


CHANGES = {
    "repetition_penalty": -1.2,
    "encoder_repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3.5,
    "encoder_no_repeat_ngram_size": 3,
    "bad_words_ids": [[5]],
    "suppress_tokens": [5],
    "begin_suppress_tokens": [5],
    "sequence_bias": [[[5], -1.0]],
    "min_length": 5,
    "min_new_tokens": 5,
    "forced_bos_token_id": 5,
    "forced_eos_token_id": [5],
    "exponential_decay_length_penalty": [5, 1.1],
    "guidance_scale": 1.5,
    "stop_strings": ["a"],
    "watermarking_config": {"bias": 2.0},
    "token_healing": True,
}


@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_unsupported_generation_fields_are_rejected_by_name(
    tmp_path: Path, field: str, file: str
) -> None:
    given = {field: CHANGES[field]}
    in_config = file == "config.json"
    folder = with_generation(tmp_path, None if in_config else given, **(given if in_config else {}))
    for action in (Engine.open, lambda source: pack(source, tmp_path / "packed")):
        with pytest.raises(ConfigError) as caught:
            action(folder)
        assert caught.value.field == field
        assert Path(caught.value.file).name == file


@pytest.mark.parametrize("field", CHANGES)
def test_generation_config_overrides_unsupported_fields_of_config(
    tmp_path: Path, field: str
) -> None:
    folder = with_generation(tmp_path, {"eos_token_id": 1}, **{field: CHANGES[field]})
    assert Engine.open(folder).config.eos_token_ids == (1,)


def test_beam_length_and_sampling_fields_are_ignored(tmp_path: Path) -> None:
    fields = {
        "num_beams": 4, "early_stopping": True, "length_penalty": 2.0, "max_length": 5,
        "max_new_tokens": 5, "do_sample": True, "temperature": 0.1, "top_k": 5, "top_p": 0.5,
        "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": -1,
        "bad_words_ids": None, "suppress_tokens": [], "sequence_bias": {}, "guidance_scale": 1,
        "forced_eos_token_id": None, "token_healing": False, "_from_model_config": True,
        "transformers_version": "4.40.0", "renormalize_logits": True, "eos_token_id": 256,
    }  # fmt: skip
    plain = Engine.open(with_generation(tmp_path / "a", None))
    ignored = Engine.open(with_generation(tmp_path / "b", fields))
    assert ignored.generate_ids(IDS, 20) == plain.generate_ids(IDS, 20)


@pytest.mark.parametrize(
    "fields", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"repetition_penalty": 2}]
)
def test_the_models_penalties_are_defaults(tmp_path: Path, fields: dict[str, Any]) -> None:
    plain = Engine.open(with_generation(tmp_path / "a", None, eos_token_id=None))
    folder = with_generation(tmp_path / "b", {"eos_token_id": None} | fields)
    pack(folder, tmp_path / "packed")
    expected = plain.generate(IDS, 20, **fields).ids
    assert expected != plain.generate_ids(IDS, 20)
    for own in (Engine.open(folder), Engine.open(tmp_path / "packed")):
        assert own.generate_ids(IDS, 20) == expected
        asked = own.generate(IDS, 20, repetition_penalty=1.1, no_repeat_ngram_size=3).ids
        assert asked == plain.generate(IDS, 20, repetition_penalty=1.1, no_repeat_ngram_size=3).ids


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "end"}'])
def test_an_invalid_generation_config_is_named(tmp_path: Path, content: str) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        Engine.open(tmp_path / "model")
    assert Path(caught.value.file).name == "generation_config.json"
