"""Compiles byte-level BPE tokenizers of the `tokenizers` package to the tables of `tables`.

Character classes are queried from the package, so that the tables split text as the package does,
independently of the Unicode versions of the package and of Python.
"""

import json
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken as RustAddedToken
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from gpt2core.errors import TokenizerError
from gpt2core.tokenizer.bpe import LETTER, NUMBER, OTHER, SPACE, AddedToken, byte_alphabet
from gpt2core.tokenizer.huggingface import HuggingFaceBackend
from gpt2core.tokenizer.tables import FORMAT

SURROGATES = range(0xD800, 0xE000)
_ASCII_SPACE = " \t\n\v\f\r"


def compile_tokenizer(folder: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors and metadata of `tokenizer.safetensors` for the tokenizer of a model directory.

    Raises:
        TokenizerError: the tokenizer is missing, or uses a feature that tables do not support: a
            normalizer, another pre-tokenizer, subword prefixes, ….
    """
    source = HuggingFaceBackend.open(folder)
    fields = json.loads(source.rust.to_str())
    model = fields["model"]
    vocab: dict[str, int] = model["vocab"]
    byte_ids = np.full(256, -1, np.int32)
    for character, byte in byte_alphabet().items():
        byte_ids[byte] = vocab.get(character, -1)
    before, after = _check_supported(fields, folder, has_all_bytes=-1 not in byte_ids)
    added = [
        AddedToken(*(token[name] for name in AddedToken._fields))._replace(
            special=token["id"] in source.special
        )
        for token in fields["added_tokens"]
    ]
    n_tokens = 1 + max([*vocab.values(), *(token.id for token in added)], default=0)
    if n_tokens > 1 << 31:
        raise TokenizerError(f"has a token id over {1 << 31}", file=folder)
    pieces = [source.token_bytes(i) for i in range(n_tokens)]
    kinds = [
        0 if piece is None else 2 if i in source.special else 1 for i, piece in enumerate(pieces)
    ]
    keys, ranks, merged = _pairs(vocab, model["merges"], folder)
    tables: dict[str, NDArray[Any]] = {
        # Widest types first, so that each table is aligned to its item size.
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
        tables["words"] = _word_flags()
    options = {
        "add_prefix_space": fields["pre_tokenizer"]["add_prefix_space"],
        "added_tokens": added,
        "vocab_size": source.vocab_size,
        "longest": source.longest_token,
        "before": before,
        "after": after,
        "split_special": source.split_special,
    }
    return tables, {"format": FORMAT, "options": json.dumps(options)}


def _check_supported(
    fields: dict[str, Any], folder: str, *, has_all_bytes: bool
) -> tuple[list[int], list[int]]:
    """Raise `TokenizerError` for any feature that the tables do not support.

    Returns:
        The ids that the post-processor adds before and after every text.
    """
    model, pre_tokenizer = fields["model"], fields["pre_tokenizer"] or {}
    added_ids = _added_ids(fields["post_processor"])
    problem = None
    if fields["normalizer"]:
        problem = f"a normalizer ({fields['normalizer'].get('type')})"
    elif pre_tokenizer.get("type") != "ByteLevel" or not pre_tokenizer.get("use_regex", True):
        problem = f"another pre-tokenizer than GPT-2's ({pre_tokenizer.get('type')})"
    elif added_ids is None:
        problem = f"a post-processor ({fields['post_processor'].get('type')})"
    elif model.get("unk_token") and not has_all_bytes:
        problem = f"unk_token {model['unk_token']!r}"
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(name):
            problem = f"{name} {model[name]!r}"
    if problem or added_ids is None:
        raise TokenizerError(f"has {problem}, which cannot be compiled", file=folder)
    return added_ids


def _added_ids(processor: dict[str, Any] | None) -> tuple[list[int], list[int]] | None:
    """The ids that a post-processor adds before and after a text; None if it does more."""
    kind = processor["type"] if processor else "ByteLevel"
    if processor is None or kind == "ByteLevel":  # it changes offsets only
        return [], []
    if kind in ("RobertaProcessing", "BertProcessing"):
        return [processor["cls"][1]], [processor["sep"][1]]
    if kind == "Sequence":
        every = [_added_ids(inner) for inner in processor["processors"]]
        effective = [added_ids for added_ids in every if added_ids != ([], [])]
        return effective[0] if len(effective) == 1 else None if effective else ([], [])
    if kind != "TemplateProcessing":
        return None
    sides: list[list[int]] = [[]]
    for part in processor["single"]:
        if "Sequence" in part:
            sides.append([])
        else:
            sides[-1] += processor["special_tokens"][part["SpecialToken"]["id"]]["ids"]
    return (sides[0], sides[1]) if len(sides) == 2 else None


def _pairs(
    vocab: dict[str, int], merges: list[Any], folder: str
) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]]:
    """Keys, ranks and results of all merges, sorted by key; the last of duplicate pairs counts."""
    found: dict[int, tuple[int, int]] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        try:
            key = vocab[left] << 32 | vocab[right]
            found[key] = (rank, vocab[left + right])
        except KeyError as error:
            raise TokenizerError(
                f"merge {rank} needs {error}, which is not in the vocabulary", file=folder
            ) from None
    keys = sorted(found)
    values = np.array([found[key] for key in keys], np.uint32).reshape(len(keys), 2)
    return np.array(keys, np.uint64), values[:, 0].copy(), values[:, 1].copy()


def _classes() -> NDArray[np.uint8]:
    """For each code point an ASCII character that represents its class; ASCII maps to itself.

    Raises:
        TokenizerError: the package classifies ASCII differently, which should not happen.
    """
    classes = np.full(0x110000, ord(OTHER), np.uint8)
    for pattern, mark in ((r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)):
        classes[_flags(pattern) == 1] = ord(mark)
    expected = [
        LETTER if c.isalpha() else NUMBER if c.isdigit() else SPACE if c in _ASCII_SPACE else OTHER
        for c in map(chr, range(128))
    ]
    if bytes(classes[:128]) != "".join(expected).encode():
        raise TokenizerError("the tokenizers package classifies ASCII differently from GPT-2")
    classes[:128] = np.arange(128)
    return classes


@cache
def _flags(pattern: str) -> NDArray[np.uint8]:
    """1 for every code point that the package's regular expressions match with `pattern`."""
    flags = np.zeros(0x110000, np.uint8)
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    for begin in range(0, 0x110000, 0x1000):
        points = [point for point in range(begin, begin + 0x1000) if point not in SURROGATES]
        text = "".join(map(chr, points))
        for _, (start, end) in split.pre_tokenize_str(text) if text else ():
            flags[points[start:end]] = 1
    return flags


@cache
def _word_flags() -> NDArray[np.uint8]:
    """1 for every code point that prevents a match of a `single_word` token next to it.

    Tested with such a token: the package uses different libraries for words and for splitting.
    """
    flags = np.ones(0x110000, np.uint8)
    mark = "\0\0"
    rust = Tokenizer(models.BPE())
    rust.add_tokens([RustAddedToken(mark, single_word=True, normalized=False)])
    for begin in range(0, 0x110000, 0x1000):
        points = [point for point in range(begin, begin + 0x1000) if point not in SURROGATES]
        text = "".join(f"{chr(point)}{mark} " for point in points)
        for start, _ in rust.encode(text).offsets:
            flags[points[start // 4]] = 0
    return flags
