"""Tables for `tokenizer_tables` from any byte-level BPE that the `tokenizers` package reads.

Classes of characters are asked of the package itself, so that a text is cut as the package cuts it,
whatever version of Unicode it and the running Python were built for.
"""

import json
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, pre_tokenizers

from gpt2core.errors import TokenizerError
from gpt2core.tokenizer_json import Json, byte_alphabet
from gpt2core.tokenizer_tables import FORMAT, LETTER, NUMBER, OTHER, SPACE, AddedToken

SURROGATES = range(0xD800, 0xE000)
_ASCII_SPACE = " \t\n\v\f\r"


def compile_tokenizer(folder: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors and metadata of `tokenizer.safetensors` for a model directory's tokenizer.

    Raises:
        TokenizerError: there is none, or it does what tables cannot: a normalizer, another
            pre-tokenizer, subword marks, dropout, …
    """
    source = Json.open(folder)
    fields = json.loads(source.rust.to_str())
    model = fields["model"]
    _refuse_what_is_not_gpt2(fields, folder)
    vocab: dict[str, int] = model["vocab"]
    added = [
        AddedToken(*(token[name] for name in AddedToken._fields))
        for token in fields["added_tokens"]
    ]
    n_tokens = 1 + max([*vocab.values(), *(token.id for token in added)], default=0)
    if n_tokens > 1 << 31:
        raise TokenizerError(f"has a token id over {1 << 31}", file=folder)
    pieces = [source.token_bytes(i) for i in range(n_tokens)]
    kinds = [
        0 if piece is None else 2 if i in source.special else 1 for i, piece in enumerate(pieces)
    ]
    byte_ids = np.full(256, -1, np.int32)
    for character, byte in byte_alphabet().items():
        byte_ids[byte] = vocab.get(character, -1)
    keys, ranks, merged = _pairs(vocab, model["merges"], folder)
    tables: dict[str, NDArray[Any]] = {
        # Widest first, so that each stands at a multiple of its own size.
        "pair_keys": keys,
        "pair_ranks": ranks,
        "pair_ids": merged,
        "token_ends": np.cumsum([len(piece or b"") for piece in pieces]).astype(np.uint32),
        "byte_ids": byte_ids,
        "classes": _classes(),
        "token_kinds": np.array(kinds, np.uint8),
        "token_bytes": np.frombuffer(b"".join(piece or b"" for piece in pieces), np.uint8),
    }
    if any(token.single_word for token in added):
        tables["words"] = _flags(r"\w")
    options = {
        "add_prefix_space": fields["pre_tokenizer"]["add_prefix_space"],
        "added_tokens": added,
        "vocab_size": source.vocab_size,
        # Without a bound where a token takes in its surroundings, or where bytes are left out.
        "longest": 0
        if -1 in byte_ids or any(token.lstrip or token.rstrip for token in added)
        else max(len(piece or b"") for piece in pieces),
    }
    return tables, {"format": FORMAT, "options": json.dumps(options)}


def _refuse_what_is_not_gpt2(fields: dict[str, Any], folder: str) -> None:
    """Raise for any property that would make the package do more than the tables do."""
    model, cutter = fields["model"], fields["pre_tokenizer"] or {}
    post = fields["post_processor"] or {}
    problem = None
    if fields["normalizer"]:
        problem = f"a normalizer ({fields['normalizer'].get('type')})"
    elif cutter.get("type") != "ByteLevel" or not cutter.get("use_regex", True):
        problem = f"another pre-tokenizer than GPT-2's ({cutter.get('type')})"
    elif post and post.get("type") != "ByteLevel":
        problem = f"a post-processor ({post.get('type')})"
    for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                 "ignore_merges"):  # fmt: skip
        if model.get(name):
            problem = f"{name} {model[name]!r}"
    if problem:
        raise TokenizerError(f"has {problem}, which cannot be compiled", file=folder)


def _pairs(
    vocab: dict[str, int], merges: list[Any], folder: str
) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]]:
    """Keys, ranks and results of all merges, sorted by key; of a repeated pair the last counts."""
    found: dict[int, tuple[int, int]] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        try:
            key = vocab[left] << 32 | vocab[right]
            found[key] = (rank, vocab[left + right])
        except KeyError as error:
            raise TokenizerError(
                f"merge {rank} needs {error}, which is no token", file=folder
            ) from None
    keys = sorted(found)
    values = np.array([found[key] for key in keys], np.uint32).reshape(len(keys), 2)
    return np.array(keys, np.uint64), values[:, 0].copy(), values[:, 1].copy()


def _classes() -> NDArray[np.uint8]:
    """For each code point the ASCII character that stands for its class; ASCII for itself.

    Raises:
        TokenizerError: the package does not take ASCII for what it is: a defect of one of us.
    """
    classes = np.full(0x110000, ord(OTHER), np.uint8)
    for pattern, mark in ((r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)):
        classes[_flags(pattern) == 1] = ord(mark)
    expected = [
        LETTER if c.isalpha() else NUMBER if c.isdigit() else SPACE if c in _ASCII_SPACE else OTHER
        for c in map(chr, range(128))
    ]
    if bytes(classes[:128]) != "".join(expected).encode():
        raise TokenizerError("the tokenizers package has other classes for ASCII than GPT-2")
    classes[:128] = np.arange(128)
    return classes


@cache
def _flags(pattern: str) -> NDArray[np.uint8]:
    """1 for every code point that the package's own regular expressions match with `pattern`."""
    flags = np.zeros(0x110000, np.uint8)
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    for begin in range(0, 0x110000, 0x1000):
        points = [point for point in range(begin, begin + 0x1000) if point not in SURROGATES]
        text = "".join(map(chr, points))
        for _, (start, end) in split.pre_tokenize_str(text) if text else ():
            flags[points[start:end]] = 1
    return flags
