"""`tokenizer.json` read without the `tokenizers` package; texts are compared in `test_tables`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2core import Tokenizer
from gpt2core.tokenizer.plain import PlainTokenizer
from tests.conftest import DEMO
from tests.support.models import END_OF_TEXT, byte_tokenizer
from tests.support.tokenizers import with_package

Fields = dict[str, Any]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("e", "r")]
TEXTS = [
    "the other",
    " the<|endoftext|>er é the",
    "",
    "their 12's\n\n  x",
    "<|endoftext|>",
    "[PAD]a",
]


def write(folder: Path, change: Callable[[Fields], object] = str, **beside: object) -> Path:
    """A tokenizer with four merges, its fields modified by `change`, and the files beside it."""
    fields = json.loads(byte_tokenizer(MERGES).to_str())
    change(fields)
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    for stem, content in beside.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def strings(fields: Fields) -> None:
    fields["model"]["merges"] = [" ".join(merge) for merge in fields["model"]["merges"]]


def end_in_vocabulary(fields: Fields) -> None:
    fields["model"]["vocab"][END_OF_TEXT] = len(fields["model"]["vocab"])


def set_model(**options: object) -> Callable[[Fields], object]:
    return lambda fields: fields["model"].update(options)


def set_end(**options: object) -> Callable[[Fields], object]:
    return lambda fields: fields["added_tokens"][0].update(options)


def set_part(part: str, **options: object) -> Callable[[Fields], object]:
    return lambda fields: fields.update({part: (fields[part] or {}) | options})


END = {"content": END_OF_TEXT, "lstrip": False, "rstrip": False, "single_word": False,
       "normalized": True, "special": True}  # fmt: skip
SAVED = {"add_prefix_space": False, "backend": "tokenizers", "bos_token": END_OF_TEXT,
         "errors": "replace", "model_max_length": 1024, "pad_token": None,
         "tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {"260": END}}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "beside"),
    [
        (str, {}),
        (strings, {}),
        (end_in_vocabulary, {}),
        (set_model(dropout=0.5), {}),
        (set_end(normalized=True), {}),
        (set_part("post_processor", type="ByteLevel", add_prefix_space=True, trim_offsets=False,
                  use_regex=True), {}),
        (set_part("pre_tokenizer", add_prefix_space=True), {}),  # GPT2Tokenizer ignores it
        (lambda fields: fields["pre_tokenizer"].pop("use_regex"), {}),
        (lambda fields: fields["model"].pop("type"), {}),
        (lambda fields: fields.update(truncation=None, padding=None), {}),
        (str, {"tokenizer_config": SAVED}),
        (str, {"tokenizer_config": {"model_max_length": 1024}}),
        (str, {"special_tokens_map": {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}}),
        (str, {"special_tokens_map": {"bos_token": END | {"normalized": False}}}),
        (str, {"tokenizer_config": {"bos_token": None, "eos_token": None, "unk_token": None,
                                    "sep_token": None, "extra_special_tokens": {}}}),
        (str, {"config": {"tokenizer_class": "GPT2TokenizerFast"}}),
    ],
)  # fmt: skip
def test_plain_files_give_the_ids_of_the_package_without_it(
    tmp_path: Path, change: Callable[[Fields], object], beside: Fields
) -> None:
    folder = write(tmp_path, change, **beside)
    tokenizer, package = Tokenizer.open(folder), with_package(folder)
    assert tokenizer.implementation == "tokenizer.json"
    assert package.implementation == "tokenizers package"
    assert tokenizer.vocab_size == package.vocab_size
    assert tokenizer.min_tokens("x" * 9000) == package.min_tokens("x" * 9000) > 0
    for text in TEXTS:
        for special in (False, True):
            ids = package.encode(text, special)
            assert tokenizer.encode(text, special) == ids, text
            assert tokenizer.decode(ids, special) == package.decode(ids, special)


WITHOUT_NAMES = {"bos_token": None, "eos_token": None, "unk_token": None}


@pytest.mark.parametrize(
    ("change", "beside"),
    [
        (set_model(unk_token="a"), {}),
        (set_model(ignore_merges=True), {}),
        (set_model(end_of_word_suffix="h"), {}),
        (set_model(byte_fallback=True), {}),
        (set_part("normalizer", type="NFC"), {}),
        (set_part("pre_tokenizer", use_regex=False), {}),
        (set_part("post_processor", type="BertProcessing", sep=["a", 1], cls=["b", 2]), {}),
        (set_end(lstrip=True), {}),
        (set_end(rstrip=True), {}),
        (set_end(single_word=True), {}),
        (set_end(special=False), {}),
        (set_end(content="<end>"), {}),
        (set_end(id=300), {}),
        (lambda fields: fields.update(added_tokens=[]), {}),
        (lambda fields: fields["added_tokens"].append(END | {"id": 261, "content": "the"}), {}),
        (str, {"added_tokens": {"[PAD]": 261}}),
        (str, {"special_tokens_map": {"pad_token": "[PAD]"}}),
        (str, {"special_tokens_map": {"pad_token": END | {"content": "[PAD]"}}}),
        (str, {"special_tokens_map": {"additional_special_tokens": ["[PAD]"]}}),
        (str, {"tokenizer_config": {"add_prefix_space": True}}),
        (str, {"tokenizer_config": {"split_special_tokens": True}}),
        (str, {"tokenizer_config": {"add_bos_token": True}}),
        (str, {"tokenizer_config": {"image_token": "[PAD]"}}),
        (str, {"tokenizer_config": {"extra_special_tokens": ["[PAD]"]}}),
        (str, {"tokenizer_config": {"added_tokens_decoder": {"260": END | {"lstrip": True}}}}),
        (str, {"tokenizer_config": {"added_tokens_decoder": {"5": END}}}),
        (str, {"tokenizer_config": WITHOUT_NAMES | {
            "added_tokens_decoder": {"260": END | {"special": False}}}}),
        (str, {"tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"}}),
        # The package ignores the map if there is an `added_tokens_decoder`.
        (str, {"tokenizer_config": {"added_tokens_decoder": {"260": END}, "pad_token": "[PAD]"},
               "special_tokens_map": {"pad_token": END_OF_TEXT}}),
        (str, {"tokenizer_config": {"add_prefix_space": True},
               "special_tokens_map": {"add_prefix_space": False}}),
    ],
)  # fmt: skip
def test_files_with_other_features_are_read_by_the_package(
    tmp_path: Path, change: Callable[[Fields], object], beside: Fields
) -> None:
    folder = write(tmp_path, change, **beside)
    assert Tokenizer.open(folder).implementation == "tokenizers package"


def unordered(fields: Fields) -> None:
    vocab = fields["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


@pytest.mark.parametrize(
    "change",
    [
        unordered,
        lambda fields: fields["model"]["vocab"].pop("a"),
        lambda fields: fields["model"].update(vocab=[]),
        lambda fields: fields["model"]["vocab"].update(a=float(fields["model"]["vocab"]["a"])),
        lambda fields: fields["model"].update(merges=["t h", "t h e"]),
        lambda fields: fields["model"].update(merges=["t", "h"]),
        lambda fields: fields["model"].update(merges=["t h", ["th", "e"]]),
        lambda fields: fields["model"].update(merges=["a b"]),  # "ab" is not in the vocabulary
        lambda fields: fields["model"].update(merges=["t h", "h e", "t h"]),
        lambda fields: fields["model"].update(merges=["t h", 5]),
        lambda fields: fields["model"].update(merges=[["t", "h"], ["th"]]),
        lambda fields: fields["model"].update(continuing_subword_prefix="h"),
        lambda fields: fields["model"].update(merges=None),
        lambda fields: fields["model"].update(merges=""),
        lambda fields: fields["model"].update(type="Unigram"),
        lambda fields: fields["decoder"].update(type="BPEDecoder"),
        lambda fields: fields["added_tokens"][0].pop("special"),
        lambda fields: fields.pop("added_tokens"),
        lambda fields: fields.pop("model"),
        lambda fields: fields.update(decoder=None),
    ],
)
def test_unusual_and_invalid_files_are_left_to_the_package(
    tmp_path: Path, change: Callable[[Fields], object]
) -> None:
    assert PlainTokenizer.open(str(write(tmp_path, change))) is None


def test_only_text_outside_ascii_imports_the_package(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom gpt2core import Tokenizer\n"
        f"t = Tokenizer.open({str(write(tmp_path))!r})\n"
        "t.decode(t.encode('The other <|endoftext|>', allow_special=True))\n"
        "before = 'tokenizers' in sys.modules\nt.encode('é')\n"
        "print(before, 'tokenizers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False True"


@pytest.fixture(scope="module")
def demo() -> tuple[Tokenizer, Tokenizer]:
    return Tokenizer.open(DEMO), with_package(DEMO)


@given(st.text(st.characters(codec="ascii"), max_size=80))
def test_any_ascii_text_gives_the_ids_of_the_package(
    demo: tuple[Tokenizer, Tokenizer], text: str
) -> None:
    tokenizer, package = demo
    assert tokenizer.implementation == "tokenizer.json"
    assert tokenizer.encode(text) == package.encode(text)
