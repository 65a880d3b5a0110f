import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from gpt2core import Engine, Tokenizer
from gpt2core.errors import InvalidArgument, InvalidPrompt, TokenizerError
from gpt2core.tokenizer.bpe import byte_alphabet
from tests.conftest import DEMO
from tests.support.models import END_OF_TEXT, byte_tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.open(DEMO)


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Tokenizer:
    return Tokenizer.open(shared_data / "gpt2-tokenizer")


def test_the_byte_alphabet_matches_the_published_vocabulary(shared_data: Path) -> None:
    vocab = json.loads((shared_data / "gpt2-tokenizer" / "vocab.json").read_text("utf-8"))
    singles = {piece: i for piece, i in vocab.items() if i < 256}
    assert set(byte_alphabet()) == set(singles)
    assert byte_alphabet()["Ġ"] == ord(" ")
    assert sorted(byte_alphabet().values()) == list(range(256))


def test_published_vectors_are_encoded_and_decoded(published: Tokenizer, shared_data: Path) -> None:
    vectors = json.loads((shared_data / "tokenizer_vectors.json").read_text("utf-8"))
    assert len(vectors) > 100
    for vector in vectors:
        special = vector["special_tokens"] != "ordinary"
        assert published.encode(vector["text"], allow_special=special) == vector["ids"]
        assert published.decode(vector["ids"]) == vector["text"]


def test_vocab_and_merges_are_the_same_tokenizer_as_tokenizer_json(
    published: Tokenizer, shared_data: Path, tmp_path: Path
) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared_data / "gpt2-tokenizer" / name, tmp_path)
    pair = Tokenizer.open(tmp_path)
    assert pair.vocab_size == published.vocab_size == 50257
    text = f"It's 12,345 tales --  \n\n né \U0001f9d9{END_OF_TEXT}the end"
    for allow in (False, True):
        assert pair.encode(text, allow) == published.encode(text, allow)
    assert pair.decode(pair.encode(text)) == text


@given(TEXT)
def test_decoding_reverses_encoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(TEXT)
def test_ids_equal_those_of_the_tokenizers_package(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == theirs().encode(text).ids


@given(st.lists(st.integers(0, 2047), max_size=30))
def test_any_ids_decode_like_in_the_tokenizers_package(
    tokenizer: Tokenizer, ids: list[int]
) -> None:
    assert tokenizer.decode(ids) == theirs().decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(ids, skip_special=True) == theirs().decode(ids)


@given(st.lists(st.integers(0, 2047), max_size=30))
def test_incremental_decoding_gives_the_complete_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    decoder = tokenizer.decoder()
    assert "".join([*map(decoder.push, ids), decoder.finish()]) == tokenizer.decode(ids)


def theirs() -> RustTokenizer:
    rust = RustTokenizer.from_file(str(DEMO / "tokenizer.json"))
    rust.encode_special_tokens = True
    return rust


def test_special_tokens_in_a_text_are_plain_text_unless_allowed(tokenizer: Tokenizer) -> None:
    text = f"a{END_OF_TEXT}b"
    assert 2047 not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text, allow_special=True).count(2047) == 1
    assert 2047 not in tokenizer.encode(text)  # the argument is not remembered


def test_special_tokens_can_be_left_out_of_the_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"a{END_OF_TEXT}b", allow_special=True)
    assert tokenizer.decode(ids, skip_special=True) == "ab"


def test_a_lone_surrogate_is_rejected_by_position(
    tokenizer: Tokenizer,
) -> None:
    with pytest.raises(InvalidPrompt, match=r"character 6 .* U\+D83D") as caught:
        tokenizer.encode("secret\ud83d")
    assert "secret" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_values_other_than_strings_are_rejected(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidPrompt, match="int, not a string"):
        tokenizer.encode(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("token", [2048, -1, 1 << 40])
def test_an_unknown_id_is_rejected_by_its_value(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(InvalidArgument, match=str(token)):
        tokenizer.decode([1, token])


def test_incomplete_utf8_is_held_back_and_replaced_at_the_end(tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    decoder = Tokenizer.open(tmp_path).decoder()
    wave = "\U0001f44b".encode()
    assert [decoder.push(b) for b in wave] == ["", "", "", "\U0001f44b"]
    assert (decoder.push(wave[0]), decoder.has_pending, decoder.finish()) == ("", True, "\ufffd")


def test_truncation_and_padding_of_a_tokenizer_file_are_ignored(tmp_path: Path) -> None:
    rust = byte_tokenizer()
    rust.enable_truncation(3)
    rust.enable_padding(length=10)
    rust.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.open(tmp_path).encode("abcdef") == list(b"abcdef")


def test_a_directory_without_a_tokenizer_opens_and_accepts_only_ids(
    tmp_path: Path, model_dir: Path
) -> None:
    shutil.copytree(model_dir, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    engine = Engine.open(tmp_path / "model")
    assert len(engine.generate_ids([1, 2], 3)) == 3
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        engine.generate("a")


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"version": "1.0"}'])
def test_an_invalid_tokenizer_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.open(tmp_path)
    assert caught.value.file == str(path)


def test_invalid_merges_are_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(byte_alphabet()))
    (tmp_path / "merges.txt").write_text("a b\n")  # "ab" is not in the vocabulary
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.open(tmp_path)
    assert caught.value.file == str(tmp_path / "merges.txt")


def test_tokenizers_other_than_bpe_are_rejected(tmp_path: Path) -> None:
    RustTokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="WordLevel"):
        Tokenizer.open(tmp_path)


def test_added_tokens_beside_vocab_and_merges_get_their_ids(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(byte_alphabet()))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 257, "<sep>": 256}))
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.encode("a<sep><pad>", allow_special=True) == [ord("a"), 256, 257]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 300}))
    with pytest.raises(TokenizerError, match="'<pad>'"):
        Tokenizer.open(tmp_path)
