import os
from pathlib import Path
from typing import Any

import pytest

from gpt2core.config import GPT2Config
from gpt2core.errors import ConfigError
from tests.support.models import small_config


def test_defaults_are_those_of_gpt2_small() -> None:
    config = GPT2Config.from_dict({})
    assert config == GPT2Config()
    assert (config.n_layer, config.n_head, config.n_embd, config.n_inner) == (12, 12, 768, 3072)
    assert (config.n_positions, config.vocab_size, config.head_dim) == (1024, 50257, 64)


def test_n_inner_is_four_times_n_embd_unless_given() -> None:
    assert GPT2Config.from_dict(small_config(n_inner=None)).n_inner == 4 * 24
    assert GPT2Config.from_dict(small_config(n_inner=50)).n_inner == 50


def test_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        GPT2Config().n_layer = 3  # type: ignore[misc]


@pytest.mark.parametrize(("given", "expected"), [(None, ()), (7, (7,)), ([7, 9], (7, 9)), ([], ())])
def test_eos_can_be_one_id_several_or_none(given: Any, expected: tuple[int, ...]) -> None:
    assert GPT2Config.from_dict(small_config(eos_token_id=given)).eos_token_ids == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation_function", "softplus"),
        ("activation_function", 5),
        ("model_type", "gpt_neo"),
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"bits": 4}),
        ("n_head", 5),
        ("n_head", 0),
        ("n_layer", -1),
        ("n_layer", 1 << 20),
        ("n_layer", "12"),
        ("n_layer", True),
        ("n_embd", 1.5),
        ("n_positions", 1 << 60),
        ("vocab_size", None),
        ("n_inner", 0),
        ("layer_norm_epsilon", "small"),
        ("layer_norm_epsilon", float("nan")),
        ("scale_attn_weights", 1),
        ("scale_attn_by_inverse_layer_idx", "yes"),
        ("tie_word_embeddings", None),
        ("eos_token_id", -1),
        ("bos_token_id", "<s>"),
    ],
)
def test_unsupported_and_invalid_fields_are_rejected_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        GPT2Config.from_dict(small_config(**{field: value}), file="config.json")
    assert caught.value.field == field
    assert caught.value.file == "config.json"


def test_the_aliases_of_transformers_are_accepted() -> None:
    aliases = {
        "hidden_size": 30,
        "num_attention_heads": 5,
        "num_hidden_layers": 4,
        "max_position_embeddings": 99,
    }
    config = GPT2Config.from_dict({"model_type": "gpt2"} | aliases)
    assert (config.n_embd, config.n_head, config.n_layer, config.n_positions) == (30, 5, 4, 99)
    with pytest.raises(ConfigError) as caught:
        GPT2Config.from_dict({"n_head": 12, "num_attention_heads": 6})
    assert caught.value.field == "num_attention_heads"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"hidden_size": 768, "n_embd": 1024},
            "config.json: hidden_size is 768 but n_embd is 1024: remove one of them",
        ),
        ({"n_layer": 0}, "config.json: n_layer is 0, not an integer from 1 to 4096"),
        (
            {"no_repeat_ngram_size": 2**40},
            "config.json: no_repeat_ngram_size is 1099511627776, not an integer from 0 to"
            " 2147483647",
        ),
    ],
)
def test_the_error_reads_as_one_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GPT2Config.from_dict(fields, "config.json")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"n_layer": \xff}', "is not UTF-8 (byte 12)"),
        (b'{"n_layer": ,}', "is not valid JSON (Expecting value: line 1 column 13 (char 12))"),
    ],
)
def test_the_position_of_an_error_in_a_file_is_named(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        GPT2Config.from_file(path)
    assert str(caught.value) == f"{path} {problem}"


def test_a_fifo_is_rejected_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="not a regular file"):
        GPT2Config.from_file(tmp_path / "config.json")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"n_layer": ' + b"9" * 5000 + b"}"]
)
def test_a_file_that_is_not_a_json_object_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        GPT2Config.from_file(path)
    assert caught.value.file == str(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json cannot be read \(No such file") as caught:
        GPT2Config.from_file(tmp_path / "config.json")
    assert caught.value.file == str(tmp_path / "config.json")
