"""Decoding on models whose continuation is known, and on random ones."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2core import Engine, Generation, Token
from gpt2core.generate import StopCutter
from tests.conftest import DEMO
from tests.models import random_tensors, script_for, small_config, write_model, write_scripted_model

END = 256  # the scripted models' end-of-text token


def scripted(folder: Path, prompt: str, continuation: bytes | list[int]) -> Engine:
    return Engine.open(write_scripted_model(folder, script_for(prompt, continuation)))


def test_a_scripted_model_says_its_script(tmp_path: Path) -> None:
    done = scripted(tmp_path, "Hi", b" there!").generate("Hi", 7)
    assert done.text == " there!"
    assert done.ids == list(b" there!")
    assert (done.prompt_tokens, done.finish_reason) == (2, "length")


def test_ties_go_to_the_lowest_id(tmp_path: Path) -> None:
    config = small_config(tie_word_embeddings=False)
    tensors = random_tensors(config)
    tensors["lm_head.weight"][:] = 0
    tensors["lm_head.weight"][[40, 90, 200]] = 1e-3 * tensors["ln_f.weight"]
    tensors["ln_f.bias"][:] = 1
    engine = Engine.open(write_model(tmp_path / "ties", config, tensors))
    scores = engine.logits([1])[0]
    assert scores[40] == scores[90] == scores[200] == scores.max() > 0
    assert engine.generate_ids([1], 1) == [40]


def test_end_of_text_ends_the_text_and_is_not_part_of_it(tmp_path: Path) -> None:
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


def test_a_stop_string_in_the_prompt_does_not_count(tmp_path: Path) -> None:
    done = scripted(tmp_path, "stop", b" and go").generate("stop", 7, ("stop",))
    assert done.text == " and go"


def test_a_stop_string_that_only_began_is_part_of_the_text(tmp_path: Path) -> None:
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


def test_the_context_ends_the_text_with_length(tmp_path: Path) -> None:
    engine = Engine.open(write_scripted_model(tmp_path, [65] * 10, n_positions=10))
    done = engine.generate("abc", 100)
    assert (len(done.ids), done.finish_reason) == (7, "length")


def test_a_prompt_that_fills_the_context_gets_no_text(tmp_path: Path) -> None:
    engine = Engine.open(write_scripted_model(tmp_path, [65] * 4, n_positions=4))
    done = engine.generate("abcd", 5)
    assert (done.text, done.ids, done.finish_reason) == ("", [], "length")


def test_no_new_tokens_give_an_empty_text(engine: Engine) -> None:
    done = engine.generate("abc", 0)
    assert (done.text, done.ids, done.finish_reason, done.decode_s) == ("", [], "length", 0)


def test_a_deadline_in_the_past_gives_what_there_is_nothing(engine: Engine) -> None:
    done = engine.generate("abc", 5, deadline=time.monotonic() - 1)
    assert (done.ids, done.finish_reason) == ([], "deadline")


def test_a_deadline_on_the_way_returns_the_partial_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = scripted(tmp_path, "x", b"abcdefgh")
    clock = iter(range(1000))  # one second passes between any two looks at the clock
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    done = engine.generate("x", 8, deadline=8.0)
    assert done.finish_reason == "deadline"
    assert 0 < len(done.ids) < 8
    assert done.text == "abcdefgh"[: len(done.ids)]


def test_a_deadline_between_two_chunks_of_the_prompt_ends_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2core import model

    monkeypatch.setattr(model, "PREFILL_ROWS", 4)
    deadline = time.monotonic() + 50
    monkeypatch.setattr(model, "monotonic", lambda: deadline + 1)
    done = engine.generate("a prompt of several chunks", 5, deadline=deadline)
    assert (done.ids, done.finish_reason) == ([], "deadline")


def test_a_far_deadline_changes_nothing(engine: Engine) -> None:
    done = engine.generate("abc", 20, deadline=time.monotonic() + 3600)
    assert done.ids == engine.generate("abc", 20).ids


@pytest.mark.parametrize("stop", [(), ("e",), (" the ", "king"), ("\n",)])
@pytest.mark.parametrize("prompt", ["Once upon a time", "“", ""])
def test_a_stream_joined_is_the_collected_generation(
    demo: Engine, prompt: str, stop: tuple[str, ...]
) -> None:
    *tokens, last = demo.stream(prompt, 30, stop)
    collected = demo.generate(prompt, 30, stop)
    assert isinstance(last, Generation)
    assert all(isinstance(token, Token) for token in tokens)
    assert [t.id for t in tokens] == last.ids == collected.ids  # type: ignore[union-attr]
    assert "".join(t.text for t in tokens) == last.text == collected.text  # type: ignore[union-attr]
    assert last.finish_reason == collected.finish_reason


def test_a_stream_may_be_left_at_any_token(demo: Engine) -> None:
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
def test_the_cutter_passes_on_everything_before_the_first_complete_stop(
    pieces: list[str], stops: list[str]
) -> None:
    cutter, passed, seen = StopCutter(stops), "", ""
    for piece in pieces:
        passed += cutter.push(piece)
        seen += piece
        if cutter.done:
            break
        assert not any(stop in seen for stop in stops)
    if cutter.done:
        assert passed == seen[: min(seen.index(stop) for stop in stops if stop in seen)]
    else:
        assert passed + cutter.finish() == seen


def test_the_demo_reads_like_a_tale() -> None:
    text = Engine.open(DEMO).generate("Once upon a time there was", 60).text
    words = text.split()
    assert len(words) > 30
    common = {"the", "and", "a", "to", "was", "he", "she", "his", "her", "of", "in", "king"}
    assert sum(word.strip(",.;'\"").lower() in common for word in words) > len(words) / 5
    assert len(set(words)) > len(words) / 4
