"""Decoding with models whose continuation is known, and with random models."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2core import Engine, Generation, Token
from gpt2core.generation import StopMatcher
from tests.conftest import DEMO
from tests.support.clock import Clock
from tests.support.models import (
    byte_tokenizer,
    random_tensors,
    script_for,
    small_config,
    write_model,
    write_scripted_model,
)

END = 256  # the scripted models' end-of-text token


def scripted(folder: Path, prompt: str, continuation: bytes | list[int]) -> Engine:
    return Engine.open(write_scripted_model(folder, script_for(prompt, continuation)))


def test_a_scripted_model_generates_its_script(tmp_path: Path) -> None:
    done = scripted(tmp_path, "Hi", b" there!").generate("Hi", 7)
    assert done.text == " there!"
    assert done.ids == list(b" there!")
    assert (done.prompt_tokens, done.finish_reason) == (2, "length")


def test_ties_select_the_lowest_id(tmp_path: Path) -> None:
    config = small_config(tie_word_embeddings=False)
    tensors = random_tensors(config)
    tensors["lm_head.weight"][:] = 0
    tensors["lm_head.weight"][[40, 90, 200]] = 1e-3 * tensors["ln_f.weight"]
    tensors["ln_f.bias"][:] = 1
    engine = Engine.open(write_model(tmp_path / "ties", config, tensors))
    scores = engine.logits([1])[0]
    assert scores[40] == scores[90] == scores[200] == scores.max() > 0
    assert engine.generate_ids([1], 1) == [40]


def test_the_end_of_text_token_is_not_part_of_the_text(tmp_path: Path) -> None:
    done = scripted(tmp_path, "Hi", [*b"ok", END, *b"more"]).generate("Hi", 7)
    assert (done.text, done.ids, done.finish_reason) == ("ok", list(b"ok"), "eos")


@pytest.mark.parametrize(
    ("stop", "text", "used"),
    [
        (("two",), "one ", 7),
        ("two", "one ", 7),
        (("e t",), "on", 5),
        (("o", "one"), "", 1),
        (("three", "wo"), "one t", 7),
        (("never",), "one two one", 11),
        (("two one",), "one ", 11),
        (("one",), "", 3),
    ],
)
def test_stop_strings_end_the_text_before_them_across_tokens(
    tmp_path: Path, stop: str | tuple[str, ...], text: str, used: int
) -> None:
    done = scripted(tmp_path, "x", b"one two one").generate("x", 11, stop)
    assert done.text == text
    assert len(done.ids) == used
    assert done.finish_reason == ("length" if stop == ("never",) else "stop")


def with_special_tilde(folder: Path, prompt: str, continuation: bytes | list[int]) -> Engine:
    """A scripted model that ends with a newline; `~` is a special token."""
    write_scripted_model(folder, script_for(prompt, continuation))
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": 10}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["~"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return Engine.open(folder)


def test_special_tokens_that_do_not_end_the_text_are_left_out(tmp_path: Path) -> None:
    script = [*b"a~b", END, *b"~c\n"]
    engine = with_special_tilde(tmp_path, "Hi", script)
    done = engine.generate("Hi", 20)
    assert (done.text, done.ids, done.finish_reason) == ("abc", script[:-1], "eos")
    *tokens, _ = engine.stream("Hi", 20)
    assert [token.text for token in tokens if isinstance(token, Token)] == [
        "a", "", "b", "", "", "c"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stop", "text", "n_ids"),
    [
        ("~", "a", 2),
        ("b<|endoftext|>", "a", 4),
        ("<|endoftext|>~", "ab", 5),
        ("cd", "ab", 7),
        ("~c~", "ab", 7),
        ("bc", "abcd", 7),
        ("~d", "abcd", 7),
        (("x<|", "c"), "ab", 6),
    ],
)
def test_stop_strings_see_special_tokens(
    tmp_path: Path, stop: str | tuple[str, ...], text: str, n_ids: int
) -> None:
    engine = with_special_tilde(tmp_path, "Hi", [*b"a~b", END, *b"~cd"])
    if stop == "~c~":
        engine = with_special_tilde(tmp_path, "Hi", [*b"a~b", END, *b"~c~"])
    done = engine.generate("Hi", 7, stop=stop)
    assert (done.text, len(done.ids)) == (text, n_ids)
    *tokens, last = engine.stream("Hi", 7, stop=stop)
    assert last == done._replace(prefill_s=last.prefill_s, decode_s=last.decode_s)
    assert "".join(token.text for token in tokens) == done.text


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_a_special_token_within_a_character_does_not_corrupt_it(
    tmp_path: Path, stop: tuple[str, ...]
) -> None:
    wave = list("\U0001f44b!".encode())
    engine = with_special_tilde(tmp_path, "Hi", [*wave[:2], ord("~"), *wave[2:]])
    done = engine.generate("Hi", 6, stop=stop)
    assert done.text == "\U0001f44b!" == engine.tokenizer.decode(done.ids, skip_special=True)


def test_a_stop_string_in_the_prompt_does_not_count(tmp_path: Path) -> None:
    done = scripted(tmp_path, "stop", b" and go").generate("stop", 7, ("stop",))
    assert done.text == " and go"


def test_an_incomplete_stop_string_is_part_of_the_text(tmp_path: Path) -> None:
    done = scripted(tmp_path, "x", b"thru").generate("x", 4, ("through",))
    assert (done.text, done.finish_reason) == ("thru", "length")


def test_a_stop_string_within_a_character_of_several_tokens_is_found(tmp_path: Path) -> None:
    done = scripted(tmp_path, "x", "aé!".encode()).generate("x", 4, ("é",))
    assert (done.text, done.finish_reason) == ("a", "stop")


def test_a_character_cut_off_by_the_limit_is_replaced(tmp_path: Path) -> None:
    done = scripted(tmp_path, "x", "aé".encode()).generate("x", 2)
    assert done.text == "a\ufffd"


def test_tokens_are_held_back_until_their_text_is_certain(tmp_path: Path) -> None:
    items = list(scripted(tmp_path, "x", "é ab".encode()).stream("x", 5, ("abc",)))
    assert items[:-1] == [
        Token(0xC3, ""),
        Token(0xA9, "é"),
        Token(32, " "),
        Token(97, ""),
        Token(98, "ab"),
    ]


def test_the_context_limit_has_finish_reason_length(tmp_path: Path) -> None:
    engine = Engine.open(write_scripted_model(tmp_path, [65] * 10, n_positions=10))
    done = engine.generate("abc", 100)
    assert (len(done.ids), done.finish_reason) == (7, "length")


def test_a_prompt_that_fills_the_context_has_an_empty_continuation(tmp_path: Path) -> None:
    engine = Engine.open(write_scripted_model(tmp_path, [65] * 4, n_positions=4))
    done = engine.generate("abcd", 5)
    assert (done.text, done.ids, done.finish_reason) == ("", [], "length")


def test_no_new_tokens_give_an_empty_text(engine: Engine) -> None:
    done = engine.generate("abc", 0)
    assert (done.text, done.ids, done.finish_reason, done.decode_s) == ("", [], "length", 0)


def test_a_deadline_in_the_past_gives_an_empty_text(engine: Engine) -> None:
    done = engine.generate("abc", 5, deadline=time.monotonic() - 1)
    assert (done.ids, done.finish_reason) == ([], "deadline")


def test_a_deadline_during_decoding_returns_the_partial_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = scripted(tmp_path, "x", b"abcdefgh")
    clock = Clock(monkeypatch, 1.0)
    done = engine.generate("x", 8, deadline=clock.now + 5.5)
    assert (done.text, done.finish_reason) == ("abcde", "deadline")
    assert (done.prefill_s, done.decode_s) == (1.0, 4.0)


def test_a_far_deadline_changes_nothing(engine: Engine) -> None:
    done = engine.generate("abc", 20, deadline=time.monotonic() + 3600)
    assert done.ids == engine.generate("abc", 20).ids


@pytest.mark.parametrize("stop", [(), ("e",), (" the ", "king"), ("\n",)])
@pytest.mark.parametrize("prompt", ["Once upon a time", "“", ""])
def test_the_concatenated_stream_is_the_generation(
    demo: Engine, prompt: str, stop: tuple[str, ...]
) -> None:
    *tokens, last = demo.stream(prompt, 30, stop)
    collected = demo.generate(prompt, 30, stop)
    assert isinstance(last, Generation)
    assert all(isinstance(token, Token) for token in tokens)
    assert [t.id for t in tokens] == last.ids == collected.ids  # type: ignore[union-attr]
    assert "".join(t.text for t in tokens) == last.text == collected.text  # type: ignore[union-attr]
    assert last.finish_reason == collected.finish_reason


def test_a_stream_can_be_closed_at_any_token(demo: Engine) -> None:
    tokens = demo.stream("Once", 30)
    assert isinstance(next(tokens), Token)
    tokens.close()  # type: ignore[attr-defined]


def test_greedy_ids_are_the_best_logits_of_each_position(demo: Engine) -> None:
    ids = demo.encode_prompt("The old woman")
    new_ids = demo.generate_ids(ids, 12)
    logits = demo.logits([*ids, *new_ids])
    assert logits[len(ids) - 1 : -1].argmax(axis=-1).tolist() == new_ids


def test_generating_is_repeatable_after_other_prompts(demo: Engine) -> None:
    first = demo.generate("The wolf", 20)
    demo.generate("Something else entirely", 20)
    assert demo.generate("The wolf", 20).ids == first.ids


def test_published_outputs_of_tiny_random_gpt2(shared_data: Path) -> None:
    import json

    folder = shared_data / "tiny-random-gpt2"
    engine = Engine.open(folder)
    cases = json.loads((folder / "expected.json").read_text())["cases"]
    assert cases
    for case in cases:
        prompt, full = case["prompt_ids"], case["full_ids"]
        assert prompt + engine.generate_ids(prompt, len(full) - len(prompt)) == full


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(st.lists(st.text("abc", max_size=3), max_size=12), STOPS)
def test_the_stop_matcher_returns_the_text_before_the_first_stop_string(
    pieces: list[str], stops: list[str]
) -> None:
    cutter, passed, seen = StopMatcher(stops), "", ""
    for piece in pieces:
        passed += cutter.push(piece)
        seen += piece
        if cutter.matched:
            break
        assert not any(stop in seen for stop in stops)
    if cutter.matched:
        assert passed == seen[: min(seen.index(stop) for stop in stops if stop in seen)]
    else:
        assert passed + cutter.finish() == seen


def test_the_demo_generates_fairy_tales() -> None:
    text = Engine.open(DEMO).generate("Once upon a time there was", 60).text
    words = text.split()
    assert len(words) > 30
    common = {"the", "and", "a", "to", "was", "he", "she", "his", "her", "of", "in", "king"}
    assert sum(word.strip(",.;'\"").lower() in common for word in words) > len(words) / 5
    assert len(set(words)) > len(words) / 4
