import shutil
from pathlib import Path
from typing import Any

import pytest

from gpt2core import Engine, GPT2Error
from gpt2core.errors import (
    InvalidArgument,
    InvalidPrompt,
    ModelError,
    PromptTooLong,
    TokenizerError,
)
from gpt2core.generation import Generation
from tests.support.models import END_OF_TEXT, small_config, write_model


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model directory") as caught:
        Engine.open(tmp_path / "nowhere")
    assert caught.value.file == str(tmp_path / "nowhere")


def test_an_unavailable_precision_is_rejected(model_dir: Path) -> None:
    assert Engine.open(model_dir, precision="f32").config.n_layer == 2
    for precision in ("int8", "bf16", "", None):
        with pytest.raises(InvalidArgument) as caught:
            Engine.open(model_dir, precision=precision)  # type: ignore[arg-type]
        assert caught.value.param == "precision"


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_threads_must_be_a_positive_number(model_dir: Path, threads: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Engine.open(model_dir, threads=threads)
    assert caught.value.param == "threads"


def test_openblas_takes_the_number_of_threads() -> None:
    import ctypes

    import numpy as np

    from gpt2core.kernels.reference import set_threads

    library = ctypes.CDLL(np._core._multiarray_umath.__file__)
    before = library.scipy_openblas_get_num_threads64_()
    try:
        assert set_threads(1)
        assert library.scipy_openblas_get_num_threads64_() == 1
    finally:
        set_threads(before)


def test_an_empty_prompt_starts_from_the_beginning_of_text_token(engine: Engine) -> None:
    done = engine.generate("", 4)
    assert done.prompt_tokens == 1
    assert done.ids == engine.generate_ids([256], 4) == engine.generate_ids([], 4)


@pytest.mark.parametrize("token", [None, 5000])
def test_an_empty_prompt_is_rejected_without_a_beginning_of_text_token(
    tmp_path: Path, token: int | None
) -> None:
    engine = Engine.open(write_model(tmp_path, small_config(bos_token_id=token)))
    with pytest.raises(InvalidPrompt, match="empty"):
        engine.generate("")


@pytest.mark.parametrize("token", [-1, 257, "a", 1.0, True, None])
def test_an_id_outside_of_the_vocabulary_is_rejected(engine: Engine, token: Any) -> None:
    with pytest.raises(InvalidPrompt, match="is not an integer from 0 to 256"):
        engine.logits([1, token])


def test_a_prompt_over_the_context_is_an_error_with_both_lengths(engine: Engine) -> None:
    with pytest.raises(PromptTooLong) as caught:
        engine.generate("x" * 65)
    assert (caught.value.prompt_tokens, caught.value.limit) == (65, 64)
    assert "65" in str(caught.value)
    assert "64" in str(caught.value)


@pytest.mark.parametrize("count", [-1, 1.5, "3", None, True])
def test_max_new_tokens_must_be_a_whole_number(engine: Engine, count: Any) -> None:
    for call in (engine.generate, engine.stream):
        with pytest.raises(InvalidArgument) as caught:
            call("abc", max_new_tokens=count)
        assert caught.value.param == "max_new_tokens"


@pytest.mark.parametrize("prompt", [5, None, b"abc", {"a": 1}])
def test_a_prompt_must_be_text_or_ids(engine: Engine, prompt: Any) -> None:
    with pytest.raises(InvalidPrompt):
        engine.generate(prompt)


def test_a_deadline_must_be_a_number(engine: Engine) -> None:
    with pytest.raises(InvalidArgument) as caught:
        engine.generate("abc", deadline="soon")  # type: ignore[arg-type]
    assert caught.value.param == "deadline"


def test_a_single_string_is_not_a_batch(engine: Engine) -> None:
    with pytest.raises(InvalidArgument) as caught:
        engine.generate_batch("abc")
    assert caught.value.param == "prompts"


def test_a_prompt_of_megabytes_is_rejected_without_encoding_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.tokenizer, "encode", lambda _: pytest.fail("encoded"))
    with pytest.raises(PromptTooLong, match="at least 76923 tokens") as caught:
        engine.generate("a'" * 500_000)  # the longest token is <|endoftext|>, 13 bytes
    assert caught.value.limit == 64


def test_the_stop_string_at_fault_is_named(engine: Engine) -> None:
    with pytest.raises(InvalidArgument, match=r"^stop\[1\] is '', not a non-empty string$"):
        engine.generate("abc", stop=["a", ""])
    with pytest.raises(InvalidArgument, match=r"^stop is '', not a non-empty string$"):
        engine.generate("abc", stop="")


@pytest.mark.parametrize("stop", ["", [""], ["a", 5], 5, {"a": 1}])
def test_stop_strings_must_be_text(engine: Engine, stop: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        engine.generate("abc", stop=stop)
    assert caught.value.param == "stop"


def test_a_batch_gives_what_each_prompt_gives_alone(engine: Engine) -> None:
    prompts = ["one", "another one", ""]
    batch = engine.generate_batch(prompts, 8)
    assert [g.ids for g in batch] == [engine.generate(p, 8).ids for p in prompts]


def test_a_prompt_can_be_ids(engine: Engine) -> None:
    assert engine.generate(list(b"abc"), 5).ids == engine.generate("abc", 5).ids


def test_generated_ids_missing_from_the_tokenizer_are_reported(tmp_path: Path) -> None:
    larger = write_model(tmp_path / "larger", small_config(vocab_size=400, eos_token_id=None))
    engine = Engine.open(larger)
    assert any(i >= 257 for i in engine.generate_ids(list(b"abc"), 60))
    with pytest.raises(ModelError, match="do not match"):
        engine.generate("abc", 60)


def test_token_ids_missing_from_the_model_are_reported(tmp_path: Path, model_dir: Path) -> None:
    smaller = write_model(tmp_path / "smaller", small_config(vocab_size=100))
    with pytest.raises(TokenizerError, match="vocabulary of 100: tokenizer and model do not match"):
        Engine.open(smaller).generate("é")


@pytest.mark.parametrize("precision", ["auto", "int8"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_directory_without_a_model_is_named_with_the_missing_file(
    tmp_path: Path, model_dir: Path, name: str, precision: str
) -> None:
    folder = Path(shutil.copytree(model_dir, tmp_path / "model"))
    (folder / name).unlink()
    with pytest.raises(GPT2Error) as caught:
        Engine.open(folder, precision)
    assert str(caught.value) == f"{folder} is not a model directory: it has no {name}"


def test_an_open_engine_survives_the_removal_of_its_files(tmp_path: Path, model_dir: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "model")
    engine = Engine.open(tmp_path / "model")
    expected = engine.generate("abc", 5).ids
    shutil.rmtree(tmp_path / "model")
    assert engine.generate("abc", 5).ids == expected


SPECIAL = f"Hello{END_OF_TEXT}"


def test_special_tokens_in_a_prompt_are_recognized_by_default(engine: Engine) -> None:
    assert engine.encode_prompt(SPECIAL) == [*b"Hello", 256]
    assert engine.encode_prompt(SPECIAL, allow_special=False) == list(SPECIAL.encode())


@pytest.mark.parametrize(("allow", "tokens"), [(True, 6), (False, 18)])
def test_every_generate_method_has_allow_special(engine: Engine, allow: bool, tokens: int) -> None:
    whole = engine.generate(SPECIAL, 2, allow_special=allow)
    batch = engine.generate_batch([SPECIAL], 2, allow_special=allow)
    *_, last = engine.stream(SPECIAL, 2, allow_special=allow)
    assert isinstance(last, Generation)
    assert whole.prompt_tokens == batch[0].prompt_tokens == last.prompt_tokens == tokens
