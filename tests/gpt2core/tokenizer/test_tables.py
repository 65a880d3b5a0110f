"""The compiled and the plain tokenizer, compared with the `tokenizers` package."""

import json
import random
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from gpt2core import Engine, Tokenizer
from gpt2core.errors import InvalidPrompt, TokenizerError
from gpt2core.files.names import TABLES_FILE
from gpt2core.pack import pack
from gpt2core.tokenizer import tables as tables_module
from gpt2core.tokenizer.bpe import byte_alphabet
from gpt2core.tokenizer.compiler import compile_tokenizer
from gpt2core.tokenizer.tables import Tables
from tests.conftest import DEMO
from tests.support.models import END_OF_TEXT
from tests.support.tokenizers import Pair, compiled

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def plain_pair(folder: Path, target: Path) -> Pair:
    """A tokenizer in three different forms."""
    pair = Pair(folder, target)
    assert pair.ours.implementation == "compiled"
    assert pair.plain.implementation == "tokenizer.json"
    return pair


@pytest.fixture(scope="module")
def demo_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return plain_pair(DEMO, tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def published(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return plain_pair(shared_data / "gpt2-tokenizer", tmp_path_factory.mktemp("tables"))


def test_published_vectors_are_encoded_and_decoded(published: Pair, shared_data: Path) -> None:
    vectors = json.loads((shared_data / "tokenizer_vectors.json").read_text("utf-8"))
    assert len(vectors) > 100
    for vector in vectors:
        special = vector["special_tokens"] != "ordinary"
        assert published.ours.encode(vector["text"], allow_special=special) == vector["ids"]
        assert published.ours.decode(vector["ids"]) == vector["text"]


@given(TEXT)
def test_any_text_gives_the_same_ids(demo_pair: Pair, text: str) -> None:
    assert demo_pair.agree(text)
    assert demo_pair.ours.decode(demo_pair.ours.encode(text)) == text


@pytest.mark.parametrize(
    ("first", "step"),
    [(0, 41), *(pytest.param(first, 4, marks=pytest.mark.slow) for first in range(4))],
)
def test_every_character_is_split_like_in_the_tokenizers_package(
    demo_pair: Pair, first: int, step: int
) -> None:
    points = [p for p in range(sys.maxunicode + 1) if not 0xD800 <= p < 0xE000]
    points = points[:0x3100] + points[0x3100 + first :: step]
    for begin in range(0, len(points), 500):
        text = "".join(f"a{chr(p)}1{chr(p)} {chr(p)}{chr(p)}!" for p in points[begin : begin + 500])
        assert demo_pair.agree(text), f"from U+{points[begin]:04X}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "don't we'll I'M THEY'RE 'tis ''s ' s",
        "  two   three\t\ttabs\n\n\nlines \r\n end   ",
        "\u00a0\u2003 \u3000\u0085\u1680\u2028x\u200b\u180e\ufeff",
        "\x00\x1c\x1d\x1e\x1f\x7f",
        "½ Ⅷ ٣ 三 ² ৭ 𝟘",
        "e\u0301 ñ n\u0303 ẛ̣ 각 각 👩‍👩‍👧‍👦 🏳️‍🌈",
        f"{END_OF_TEXT}a{END_OF_TEXT}{END_OF_TEXT} <|endoftext|",
    ],
)
def test_unusual_texts_give_the_same_ids(demo_pair: Pair, published: Pair, text: str) -> None:
    assert demo_pair.agree(text)
    assert published.agree(text)


def test_a_lone_surrogate_is_rejected(demo_pair: Pair) -> None:
    with pytest.raises(InvalidPrompt, match=r"U\+D800"):
        demo_pair.ours.encode("a\ud800")


def test_every_id_gives_the_same_bytes(published: Pair, demo_pair: Pair) -> None:
    for pair in (published, demo_pair):
        for ours in (pair.ours, pair.plain):
            assert ours.vocab_size == pair.theirs.vocab_size
            for token in range(pair.theirs.vocab_size):
                assert ours.token_bytes(token) == pair.theirs.token_bytes(token)
                assert ours.is_special(token) == pair.theirs.is_special(token)


@given(st.lists(st.integers(0, 2047), max_size=40))
def test_any_ids_give_the_same_text(demo_pair: Pair, ids: list[int]) -> None:
    assert demo_pair.ours.decode(ids) == demo_pair.theirs.decode(ids)
    skipped = demo_pair.theirs.decode(ids, skip_special=True)
    assert demo_pair.ours.decode(ids, skip_special=True) == skipped
    assert demo_pair.plain.decode(ids, skip_special=True) == skipped


@pytest.mark.parametrize("form", ["ours", "plain"])
@pytest.mark.parametrize("run", ["a", " ", "é", "ab", "1", "!", "\n", "\u3000", "don't ", "👍"])
def test_a_long_word_takes_less_than_quadratic_time(published: Pair, run: str, form: str) -> None:
    tokenizer: Tokenizer = getattr(published, form)

    def seconds(text: str) -> float:
        began = process_time()
        tokenizer.encode(text)
        return process_time() - began

    short, long = run * 4_000, run * 32_000
    ratio = min(seconds(long) for _ in range(2)) / min(seconds(short) for _ in range(3))
    assert ratio < 24  # eight times the length; a quadratic algorithm takes 64 times as long
    assert published.agree(short)


def write_tokenizer(folder: Path, merges: str = "", **options: object) -> RustTokenizer:
    """A byte-level BPE: the byte alphabet except `without`, then the merges."""
    without = str(options.pop("without", ""))
    alphabet = {c: b for c, b in byte_alphabet().items() if chr(b) not in without or b > 127}
    vocab = {character: i for i, character in enumerate(alphabet)}
    pairs = [tuple(merge.split("+")) for merge in merges.split()]
    for left, right in pairs:
        vocab.setdefault(left + right, len(vocab))
    rust = RustTokenizer(models.BPE(vocab=vocab, merges=pairs))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})
    rust.decoder = decoders.ByteLevel()
    folder.mkdir(exist_ok=True)
    rust.save(str(folder / "tokenizer.json"))
    return rust


def small_texts() -> Iterator[str]:
    for length in range(9):
        for letters in product("ab ", repeat=length):
            yield "".join(letters)


@pytest.mark.parametrize(
    "merges",
    [
        "a+b b+a ab+a",
        "a+a aa+a aa+aa",
        "b+a a+b ba+ba a+ba ab+ab",
        "ab+ab a+b aba+b ab+a",  # decreasing ranks
        "a+b ab+b a+bb b+b abb+a",
    ],
)
def test_merges_in_any_order_give_the_same_ids(tmp_path: Path, merges: str) -> None:
    rust = write_tokenizer(tmp_path / "a")
    rust.add_special_tokens([END_OF_TEXT])
    fields = json.loads(rust.to_str())
    pairs = [merge.split("+") for merge in merges.split()]
    results = [left + right for left, right in pairs]
    pieces = [*fields["model"]["vocab"], *dict.fromkeys(results)]
    fields["model"] |= {"vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": pairs}
    fields["added_tokens"][0]["id"] = len(pieces)
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps(fields))
    pair = Pair(tmp_path / "a", tmp_path / "b")
    each_gives_a_new_token = len(set(results)) == len(results)
    assert (pair.plain.implementation == "tokenizer.json") == each_gives_a_new_token
    for text in small_texts():
        assert pair.agree(text), text


@pytest.mark.parametrize("prefix", [True, False])
def test_a_prefix_space_is_added(tmp_path: Path, prefix: bool) -> None:
    rust = write_tokenizer(tmp_path / "a", "a+b", add_prefix_space=prefix)
    rust.add_tokens([AddedToken("<x>", normalized=False)])
    rust.save(str(tmp_path / "a" / "tokenizer.json"))
    pair = Pair(tmp_path / "a", tmp_path / "b")
    for text in ("", "ab", " ab", "ab<x>ab <x> ab", "<x>", "é", "\tab"):
        assert pair.agree(text), text


def test_bytes_missing_from_the_vocabulary_are_dropped(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "a", "a+c", without="b")
    pair = Pair(tmp_path / "a", tmp_path / "b")
    for text in ("abc", "b", "aabbcc", "b b"):
        assert pair.agree(text), text
    assert pair.ours.min_tokens("b" * 10_000) == 0


def added_token_sets() -> list[list[AddedToken]]:
    return [
        [AddedToken("<x>"), AddedToken("<x><y>"), AddedToken("x>")],
        [AddedToken("<x>", normalized=False), AddedToken("x", normalized=True)],
        [AddedToken("<m>", lstrip=True), AddedToken("<n>", rstrip=True)],
        [AddedToken("<m>", lstrip=True, rstrip=True, special=True), AddedToken(" a")],
        [AddedToken("ab", single_word=True), AddedToken("é", single_word=True, lstrip=True)],
        [AddedToken("<s>", special=True), AddedToken("<s>a"), AddedToken("s", special=True)],
        [AddedToken("a.b|c(", normalized=False)],
    ]


@pytest.mark.parametrize("number", range(len(added_token_sets())))
def test_added_tokens_are_found(tmp_path: Path, number: int) -> None:
    rust = write_tokenizer(tmp_path / "a", "a+b")
    tokens = added_token_sets()[number]
    rust.add_tokens([token for token in tokens if not token.special])
    rust.add_special_tokens([token for token in tokens if token.special])
    rust.save(str(tmp_path / "a" / "tokenizer.json"))
    pair = Pair(tmp_path / "a", tmp_path / "b")
    draw = random.Random(number)
    parts = [
        *(t.content for t in tokens),
        "<",
        ">",
        "x",
        "a",
        "b",
        "ab",
        " ",
        "\u3000",
        "\n",
        "é",
        "1",
        "_",
    ]
    for _ in range(3000):
        text = "".join(draw.choice(parts) for _ in range(draw.randrange(8)))
        assert pair.agree(text), text
    for token in range(pair.theirs.vocab_size):
        assert pair.ours.token_bytes(token) == pair.theirs.token_bytes(token)


def test_vocab_and_merges_files_are_compiled(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    fields = json.loads((DEMO / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(fields["vocab"]))
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in fields["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines))
    pair = Pair(folder, tmp_path / "b")
    assert pair.agree("The old woman said: 'Don't!' <|endoftext|>")


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("normalizer", normalizers.NFC(), "a normalizer"),
        ("pre_tokenizer", pre_tokenizers.Whitespace(), "another pre-tokenizer"),
        ("pre_tokenizer", pre_tokenizers.ByteLevel(use_regex=False), "another pre-tokenizer"),
    ],
)
def test_unsupported_tokenizers_are_not_compiled_but_copied(
    tmp_path: Path, field: str, value: object, problem: str
) -> None:
    rust = write_tokenizer(tmp_path / "a")
    setattr(rust, field, value)
    rust.save(str(tmp_path / "a" / "tokenizer.json"))
    with pytest.raises(TokenizerError, match=problem):
        compile_tokenizer(str(tmp_path / "a"))
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DEMO / name, tmp_path / "a")
    packed = pack(tmp_path / "a", tmp_path / "packed")
    assert problem in str(packed.tokenizer_problem)
    assert not (tmp_path / "packed" / TABLES_FILE).exists()
    assert (tmp_path / "packed" / "tokenizer.json").exists()


def test_opening_and_encoding_need_no_tokenizers_package_and_no_json(tmp_path: Path) -> None:
    import subprocess

    compiled(DEMO, tmp_path)
    code = (
        "import sys\nfrom gpt2core import Tokenizer\n"
        f"t = Tokenizer.open({str(tmp_path)!r})\n"
        "assert t.decode(t.encode('Der Bär sagte, äh: 5 €')) == 'Der Bär sagte, äh: 5 €'\n"
        "print([m for m in ('tokenizers', 'regex', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    compiled(DEMO, tmp_path)
    return tmp_path / TABLES_FILE


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("token_ends", lambda a: a[:-1]),
        ("token_ends", lambda a: a[::-1].copy()),
        ("token_ends", lambda a: a + np.uint32(1)),
        ("token_kinds", lambda a: a[:0]),
        ("byte_ids", lambda a: a[:255]),
        ("byte_ids", lambda a: a - np.int32(5)),
        ("byte_ids", lambda a: a + np.int32(5000)),
        ("pair_ids", lambda a: a + np.uint32(5000)),
        ("pair_ranks", lambda a: a[1:]),
        ("classes", lambda a: a[:-1]),
        ("pair_keys", lambda a: a.astype(np.uint32)),
        ("pair_keys", lambda a: a.reshape(-1, 1)),
    ],
)
def test_invalid_tables_are_rejected(tables: Path, name: str, change: "object") -> None:
    from safetensors import safe_open

    with safe_open(tables, "np") as file:
        metadata = file.metadata()
    arrays = load_file(tables)
    arrays[name] = np.ascontiguousarray(change(arrays[name]))  # type: ignore[operator]
    save_file(arrays, tables, metadata=metadata)
    with pytest.raises(TokenizerError):
        Tables.open(tables)


@pytest.mark.parametrize("change", [lambda a: a[::-1].copy(), lambda a: a + np.uint32(1)])
def test_large_tables_are_checked_by_a_sample(
    tables: Path, change: "object", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables_module, "_SAMPLE", 10)
    Tables.open(tables)
    test_invalid_tables_are_rejected(tables, "token_ends", change)
    test_invalid_tables_are_rejected(tables, "pair_ids", lambda a: a + np.uint32(5000))


def test_an_invalid_id_outside_the_sample_is_an_error_of_the_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import safe_open

    pack(DEMO, tmp_path)
    monkeypatch.setattr(tables_module, "_SAMPLE", 10)
    path = tmp_path / TABLES_FILE
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    arrays = load_file(path)
    ids = arrays["pair_ids"].copy()
    step = 1 + len(ids) // 10
    arrays["pair_ids"][np.arange(len(ids)) % step != 0] += np.uint32(5000)
    save_file(arrays, path, metadata=metadata)
    engine = Engine.open(tmp_path)
    with pytest.raises(TokenizerError, match="tokenizer and model do not match"):
        engine.encode_prompt("Once upon a time there was a king")


@pytest.mark.parametrize("metadata", [None, {"format": "x"}, {"format": "gpt2-tokenizer-1"},
                                      {"format": "gpt2-tokenizer-1", "options": "[]"}])  # fmt: skip
def test_tables_without_their_metadata_are_rejected(
    tables: Path, metadata: dict[str, str] | None
) -> None:
    save_file(load_file(tables), tables, metadata=metadata)
    with pytest.raises(TokenizerError):
        Tables.open(tables)


CATEGORIES: dict[str, list[str]] = {}
for _point in range(sys.maxunicode + 1):
    if not 0xD800 <= _point < 0xE000:
        CATEGORIES.setdefault(unicodedata.category(chr(_point)), []).append(chr(_point))


@pytest.mark.slow
@pytest.mark.parametrize("group", range(20))
def test_fuzzed_strings_give_the_same_ids_and_decode_to_themselves(
    published: Pair, group: int
) -> None:
    """50,000 strings in each group, a million in all, of every category."""
    draw = random.Random(group)
    categories = sorted(CATEGORIES)
    common = " \n\t'abcdestrvml0123.,!?-\u00a0\u3000\u0300\u200d"
    for _ in range(50_000):
        pieces = []
        for _ in range(draw.randrange(1, 12)):
            kind = draw.random()
            if kind < 0.5:
                character = draw.choice(CATEGORIES[draw.choice(categories)])
            else:
                character = draw.choice(common)
            pieces.append(character * (draw.randrange(1, 30) if draw.random() < 0.05 else 1))
        text = "".join(pieces)
        ids = published.ours.encode(text)
        assert ids == published.theirs.encode(text) == published.plain.encode(text), repr(text)
        assert published.ours.decode(ids) == text
