"""Files next to a vocabulary. Expected ids are those of `transformers` 5.24."""

import json
import random
import sys
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from tokenizers import AddedToken, pre_tokenizers, processors

from gpt2core import Tokenizer
from gpt2core.errors import TokenizerError
from gpt2core.tokenizer.bpe import byte_alphabet
from tests.support.models import END_OF_TEXT, byte_tokenizer, small_config
from tests.support.tokenizers import Pair

Files = dict[str, Any]


def write(folder: Path, files: Files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
    return folder


def vocabulary(**more: Any) -> Files:
    """vocab.json with bytes and the end-of-text token, merges.txt, the JSON files in `beside`."""
    vocab = {**byte_alphabet(), END_OF_TEXT: 256}
    files: Files = {"vocab.json": vocab, "merges.txt": "#version: 0.2\n"}
    return files | {f"{stem}.json": content for stem, content in more.items()}


def whole(change: Any = None, **more: Any) -> Files:
    """The same vocabulary in `tokenizer.json`, modified by `change`."""
    rust = byte_tokenizer()
    if change:
        change(rust)
    return {"tokenizer.json": rust.to_str()} | {f"{k}.json": v for k, v in more.items()}


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False, "special": False} | flags  # fmt: skip


ADDED = {"<user>": 257, "<bot>": 258}
MARK = {"256": token(END_OF_TEXT, special=True)}
DECODER = {"257": token("<user>", rstrip=True), "258": token("<bot>", special=True)}


@pytest.mark.parametrize(
    ("files", "text", "expected"),
    [
        (vocabulary(added_tokens=ADDED), "<user>hi", [257, *b"hi"]),
        (vocabulary(added_tokens=ADDED), "<bot> <user>", [258, 32, 257]),
        # `added_tokens_decoder` takes precedence over the other files.
        (
            vocabulary(
                added_tokens={"<other>": 257},
                special_tokens_map={"pad_token": "<pad>"},
                tokenizer_config={"added_tokens_decoder": DECODER},
            ),
            "<user>  hi<bot><other><pad>",
            [257, *b"hi", 258, *b"<other><pad>"],
        ),
        # Named tokens that are not in the vocabulary are appended in the order of their names.
        (
            vocabulary(special_tokens_map={"pad_token": "<pad>", "bos_token": {"content": "<s>"}}),
            "<s><pad>",
            [257, 258],
        ),
        (
            vocabulary(
                added_tokens={"<pad>": 257},
                special_tokens_map={"pad_token": {"content": "<pad>", "lstrip": True}},
            ),
            "a  <pad>",
            [*b"a  ", 257],  # the flags of the map are not those of the token
        ),
        (
            vocabulary(
                tokenizer_config={
                    "bos_token": {"__type": "AddedToken", **token("<s>", lstrip=True)},
                    "additional_special_tokens": ["<x>", "<y>"],
                    "image_token": "<image>",
                }
            ),
            "a <s><image><x><y>",
            [97, 257, 258, 259, 260],
        ),
        # The first file takes precedence.
        (
            vocabulary(
                tokenizer_config={"additional_special_tokens": ["<x>"]},
                special_tokens_map={"additional_special_tokens": ["<y>"]},
            ),
            "<x><y>",
            [257, *b"<y>"],
        ),
        # The end-of-text token is appended to a vocabulary that does not have it.
        (
            {**vocabulary(added_tokens={"<user>": 256}), "vocab.json": dict(byte_alphabet())},
            f"{END_OF_TEXT}<user>",
            [257, 256],
        ),
        (vocabulary(tokenizer_config={"add_bos_token": True}), "hi", [256, *b"hi"]),
        (
            vocabulary(
                tokenizer_config={
                    "add_bos_token": True,
                    "add_eos_token": True,
                    "bos_token": "<s>",
                }
            ),
            "hi",
            [257, *b"hi", 256],
        ),
        (vocabulary(tokenizer_config={"add_bos_token": True, "bos_token": None}), "a", [97]),
        (vocabulary(tokenizer_config={"add_prefix_space": True}), "hi", [*b" hi"]),
        (
            vocabulary(tokenizer_config={"split_special_tokens": True}),
            f"a{END_OF_TEXT}",
            [*f"a{END_OF_TEXT}".encode()],
        ),
        # Next to `tokenizer.json`
        (whole(tokenizer_config={"add_bos_token": True}), "hi", [*b"hi"]),
        (whole(tokenizer_config={"add_prefix_space": True}), "hi", [*b" hi"]),
        (whole(added_tokens=ADDED), "<user>hi", [257, *b"hi"]),
        (
            whole(
                lambda rust: rust.add_tokens(["<old>"]),
                tokenizer_config={"added_tokens_decoder": {**MARK, "257": token("<new>")}},
            ),
            "<old><new>",
            [*b"<old>", 257],
        ),
        (
            whole(
                lambda rust: rust.add_tokens(["<old>"]),
                tokenizer_config={
                    "added_tokens_decoder": {"258": token("<new>")},
                    "tokenizer_class": "PreTrainedTokenizerFast",
                },
            ),
            "<old><new>",
            [257, 258],
        ),
        (
            whole(
                lambda rust: setattr(
                    rust,
                    "post_processor",
                    processors.TemplateProcessing(
                        single=f"{END_OF_TEXT} $A a", special_tokens=[(END_OF_TEXT, 256), ("a", 97)]
                    ),
                )
            ),
            "hi",
            [256, *b"hi", 97],
        ),
    ],
)
def test_texts_have_the_ids_of_the_reference_raw_and_packed(
    tmp_path: Path, files: Files, text: str, expected: list[int]
) -> None:
    pair = Pair(write(tmp_path / "a", files), tmp_path / "b")
    assert pair.theirs.encode(text, allow_special=True) == expected
    assert pair.ours.encode(text, allow_special=True) == expected
    assert pair.agree(text)


def with_prefix_space(rust: Any) -> None:
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"tokenizer_class": "GPT2Tokenizer"}, b"hi"),
        ({"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}, b" hi"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, b" hi"),
        ({"tokenizer_class": "TokenizersBackend", "add_prefix_space": False}, b" hi"),
        ({}, b"hi"),
    ],
)
def test_the_tokenizer_class_determines_the_prefix_space(
    tmp_path: Path, settings: dict[str, Any], expected: bytes
) -> None:
    folder = write(tmp_path, whole(with_prefix_space, tokenizer_config=settings))
    assert Tokenizer.open(folder).encode("hi") == list(expected)


def test_the_tokenizer_class_can_be_in_the_models_config(tmp_path: Path) -> None:
    config = small_config(tokenizer_class="PreTrainedTokenizerFast")
    folder = write(tmp_path, whole(with_prefix_space, config=config))
    assert Tokenizer.open(folder).encode("hi") == list(b" hi")


@pytest.mark.parametrize(
    ("files", "file"),
    [
        (vocabulary(tokenizer_config={"tokenizer_class": "RobertaTokenizer"}), "tokenizer_config"),
        (vocabulary(tokenizer_config={"add_prefix_space": "yes"}), "tokenizer_config"),
        (vocabulary(tokenizer_config={"bos_token": 5}), "tokenizer_config"),
        (vocabulary(tokenizer_config={"added_tokens_decoder": {"257": "<x>"}}), "vocab"),
        (vocabulary(added_tokens={"<x>": 300}), "added_tokens"),
        (vocabulary(tokenizer_config=[1]), "tokenizer_config"),
        (whole(special_tokens_map="{"), "special_tokens_map"),
    ],
)
def test_an_unsupported_tokenizer_file_is_named(tmp_path: Path, files: Files, file: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.open(write(tmp_path, files))
    assert Path(caught.value.file).name == f"{file}.json"


def test_a_token_once_declared_special_stays_special(tmp_path: Path) -> None:
    def add(rust: Any) -> None:
        rust.add_special_tokens([AddedToken("<x>", normalized=True)])

    files = whole(add, special_tokens_map={"pad_token": "<pad>"}, added_tokens={"<x>": 300})
    pair = Pair(write(tmp_path / "a", files), tmp_path / "b")
    for tokenizer in (pair.theirs, pair.ours):
        assert tokenizer.encode("<x>", allow_special=True) == [257]
        assert tokenizer.encode("<x>") == list(b"<x>")
        assert tokenizer.decode([97, 257], skip_special=True) == "a"


def test_dropout_is_disabled_in_both_forms(tmp_path: Path) -> None:
    def drop(rust: Any) -> None:
        rust.model.dropout = 0.5

    rust = byte_tokenizer([("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o")])
    drop(rust)
    pair = Pair(write(tmp_path / "a", {"tokenizer.json": rust.to_str()}), tmp_path / "b")
    encodings = {tuple(pair.theirs.encode("hello")) for _ in range(50)}
    assert encodings == {tuple(pair.ours.encode("hello"))}
    assert len(encodings.pop()) == 1


def test_4000_added_tokens_open_in_linear_time(tmp_path: Path) -> None:
    def seconds(n_tokens: int, folder: Path) -> float:
        tokens = {f"<token {i}>": 257 + i for i in range(n_tokens)}
        write(folder, vocabulary(added_tokens=tokens))
        started = process_time()
        tokenizer = Tokenizer.open(folder)
        took = process_time() - started
        assert tokenizer.encode(f"a<token {n_tokens - 1}>") == [97, 256 + n_tokens]
        return took

    few = min(seconds(1000, tmp_path / f"a{i}") for i in range(3))
    many = min(seconds(4000, tmp_path / f"b{i}") for i in range(3))
    assert many < 30 * few  # cubic time is 64 times as long


def test_4000_added_tokens_are_found_in_a_long_text_in_both_forms(tmp_path: Path) -> None:
    tokens = {f"<token {i}>": 257 + i for i in range(4000)}
    pair = Pair(write(tmp_path / "a", vocabulary(added_tokens=tokens)), tmp_path / "b")
    draw = random.Random(0)
    assert pair.agree("".join(draw.choice([*tokens, "<token ", "a", " "]) for _ in range(3000)))


def test_tokens_that_strip_both_sides_do_not_strip_a_space_twice(tmp_path: Path) -> None:
    def add(rust: Any) -> None:
        rust.add_tokens([AddedToken("\n", lstrip=True, rstrip=True)])

    pair = Pair(write(tmp_path / "a", whole(add)), tmp_path / "b")
    for text in ("\n\n", " \n \n ", "a\n\n\nb", "\n \n\u3000\n"):
        assert pair.agree(text), text
    assert pair.ours.encode("\n\n") == [257]


CONTENTS = ["<m>", "m>", "\n", " ", " a", "ab", "é", "1", "<m><m>", "\u3000", "_"]


@pytest.mark.parametrize("seed", range(60))
def test_added_tokens_with_any_flags_are_found_in_both_forms(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)

    def add(rust: Any) -> None:
        flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
        for content in draw.sample(CONTENTS, 3):
            token = AddedToken(content, **{flag: draw.random() < 0.4 for flag in flags})
            rust.add_tokens([token])

    pair = Pair(write(tmp_path / "a", whole(add)), tmp_path / "b")
    for _ in range(400):
        text = "".join(draw.choice([*CONTENTS, "a", "b", "\t"]) for _ in range(draw.randrange(8)))
        try:
            expected = pair.theirs.encode(text, allow_special=True)
        except TokenizerError:
            continue  # the package panics
        assert pair.ours.encode(text, allow_special=True) == expected, text
        assert pair.ours.encode(text) == pair.theirs.encode(text), text


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 53])
def test_a_single_word_token_is_found_beside_the_same_characters(tmp_path: Path, step: int) -> None:
    def add(rust: Any) -> None:
        rust.add_tokens([AddedToken("cat", single_word=True)])

    pair = Pair(write(tmp_path / "a", whole(add)), tmp_path / "b")
    points = [p for p in range(sys.maxunicode + 1) if not 0xD800 <= p < 0xE000]
    points = points[:0x2100] + points[0x2100::step]
    for begin, end in pairwise([*range(0, len(points), 500), len(points)]):
        text = "".join(f"{chr(p)}cat cat{chr(p)} " for p in points[begin:end])
        assert pair.agree(text), f"from U+{points[begin]:04X}"


@pytest.mark.parametrize("kind", ["missing bytes", "fused unknowns", "white space"])
def test_there_is_no_lower_bound_if_text_can_be_dropped(tmp_path: Path, kind: str) -> None:
    fields = json.loads(byte_tokenizer().to_str())
    if kind == "white space":
        cutters = [{"type": "WhitespaceSplit"}, fields["pre_tokenizer"]]
        fields["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": cutters}
    else:
        fields["model"]["vocab"].pop("z")
        fields["added_tokens"][0]["id"] = 255
    if kind == "fused unknowns":
        fields["model"] |= {"unk_token": "a", "fuse_unk": True}
    tokenizer = Tokenizer.open(write(tmp_path, {"tokenizer.json": fields}))
    text = "a" + (" " if kind == "white space" else "z") * 100_000
    assert len(tokenizer.encode(text)) <= 2
    assert tokenizer.min_tokens(text) <= len(tokenizer.encode(text))


def test_the_lower_bound_is_correct_for_long_tokens(tmp_path: Path) -> None:
    def add(rust: Any) -> None:
        rust.add_tokens(["é" * 500])

    pair = Pair(write(tmp_path / "a", whole(add)), tmp_path / "b")
    text = "é" * 10_000
    for tokenizer in (pair.ours, pair.theirs):
        assert 0 < tokenizer.min_tokens(text) <= len(tokenizer.encode(text)) == 20
