"""The compiled tokenizer: byte-level BPE on memory-mapped tables.

`gpt2core.pack` writes `tokenizer.safetensors` from the files that the `tokenizers` package reads.
It gives the same ids and the same text. Opening it reads only a header; encoding reads the few
pages that it needs.

    token_bytes  U8  [n_bytes]     the bytes of all tokens, concatenated
    token_ends   U32 [n_tokens]    the end of each token in token_bytes
    token_kinds  U8  [n_tokens]    0 unused id, 1 token, 2 special token
    byte_ids     I32 [256]         the token of each byte, or -1
    pair_keys    U64 [n_merges]    left id * 2**32 + right id, sorted
    pair_ranks   U32 [n_merges]    the position of the merge in the list of merges
    pair_ids     U32 [n_merges]    the resulting token
    classes      U8  [0x110000]    for each code point an ASCII character of the same class
    words        U8  [0x110000]    1 for word characters; only if a token has single_word
"""

import json
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush

from gpt2core.errors import CheckpointError, TablesFormatError, TokenizerError
from gpt2core.files.safetensors import Tensor, open_with_metadata
from gpt2core.startup.slim_typing import Any, NamedTuple

FORMAT = "gpt2-tokenizer-2"
# GPT-2's pattern (https://github.com/openai/gpt-2, `src/encoder.py`) for text in which every
# character outside ASCII has been replaced by the ASCII character of its class.
_PIECES = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)
LETTER, NUMBER, SPACE, OTHER = "A", "0", "\t", "!"
_DTYPES = {"token_bytes": "U8", "token_ends": "U32", "token_kinds": "U8", "byte_ids": "I32",
           "pair_keys": "U64", "pair_ranks": "U32", "pair_ids": "U32", "classes": "U8"}  # fmt: skip
_CHARACTERS = 0x110000
_SAMPLE = 2000
_CACHED_WORDS = 10_000
_CACHED_CHARACTERS = 64


class AddedToken(NamedTuple):
    """A token that is matched before the text is split, as in `tokenizers`."""

    id: int
    content: str
    special: bool
    normalized: bool
    """Matched after those that are not normalized."""
    single_word: bool
    """Does not match inside a word."""
    lstrip: bool
    """Includes the white space before it."""
    rstrip: bool
    """Includes the white space after it."""


class Tables:
    """An open `tokenizer.safetensors`. Thread-safe."""

    def __init__(self, tensors: dict[str, Tensor], options: dict[str, Any], path: str) -> None:
        tables = _checked(tensors, path)
        self._bytes = tables["token_bytes"]
        self._ends = tables["token_ends"]
        self._kinds = tables["token_kinds"]
        self._byte_ids = tables["byte_ids"].tolist()
        self._keys = tables["pair_keys"]
        self._ranks = tables["pair_ranks"]
        self._ids = tables["pair_ids"]
        self._classes = tables["classes"]
        self._words = tables.get("words")
        self._prefix_space = bool(options["add_prefix_space"])
        self._before: list[int] = options["before"]
        self._after: list[int] = options["after"]
        self._split_special = bool(options["split_special"])
        added = [AddedToken(*fields) for fields in options["added_tokens"]]
        self.special = frozenset(token.id for token in added if token.special)
        self.vocab_size: int = options["vocab_size"]
        self.longest_token = int(options["longest"])
        """Bytes of the longest token; 0 if a token may replace more text than its own bytes."""
        self.source: dict[str, str] = {}
        """SHA-256 of the files that the tables were compiled from; {} if unknown."""
        # Tokens that are not normalized are matched first.
        self._added = [
            _AddedTokens(group, self._classes, self._words)
            for wanted in (False, True)
            if (group := [token for token in added if token.normalized is wanted])
        ]
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Tables":
        """Map the tables of one file.

        Raises:
            TablesFormatError: another version of `pack` wrote it.
            TokenizerError: it is missing or invalid.
        """
        path = os.fspath(path)
        try:
            tensors, metadata = open_with_metadata(path)
        except CheckpointError as error:
            raise TokenizerError(error.problem, file=path) from error
        if metadata.get("format") != FORMAT:
            raise TablesFormatError(f"is not {FORMAT}: pack the model again", file=path)
        try:
            tables = cls(tensors, json.loads(metadata["options"]), path)
            source = json.loads(metadata.get("source", "{}"))
            tables.source = {str(name): str(digest) for name, digest in source.items()}
            return tables
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TokenizerError(f"has invalid options ({error})", file=path) from error

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """Ids of a text without surrogates; special tokens are plain text unless allowed."""
        allow_special = allow_special and not self._split_special
        sections: list[int | str] = [text] if text else []
        for added in self._added:
            sections = [
                part
                for section in sections
                for part in (
                    added.split(section, allow_special) if isinstance(section, str) else [section]
                )
            ]
        ids = self._before[:]
        for section in sections:
            if isinstance(section, int):
                ids.append(section)
                continue
            for piece in self._pieces(section):
                ids += self._word(piece)
        return ids + self._after

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes of a token; None if there is no such id."""
        if not 0 <= token < len(self._ends) or not self._kinds[token]:
            return None
        begin = self._ends[token - 1] if token else 0
        return bytes(self._bytes[begin : self._ends[token]])

    def _pieces(self, section: str) -> Iterable[str]:
        """Split a section into pieces as GPT-2 does; merges stay inside a piece."""
        if self._prefix_space and not section.startswith(" "):
            section = " " + section
        if section.isascii():
            return _PIECES.findall(section)
        # Indexed by code point: reads only the pages of the characters that occur.
        of_class = section.translate(self._classes)
        return (section[match.start() : match.end()] for match in _PIECES.finditer(of_class))

    def _word(self, piece: str) -> list[int]:
        ids = self._cache.get(piece)
        if ids is None:
            ids = self._merge(piece.encode())
            if len(piece) <= _CACHED_CHARACTERS and len(self._cache) < _CACHED_WORDS:
                self._cache[piece] = ids
        return ids

    def _merge(self, word: bytes) -> list[int]:
        """Merge bytes to tokens: the pair with the lowest rank first, the leftmost of equals.

        Uses a heap of adjacent pairs, O(n log n) for n bytes. Entries that an adjacent merge has
        invalidated are recognized by their key.
        """
        byte_ids, keys, ranks, merged = self._byte_ids, self._keys, self._ranks, self._ids
        tokens = [byte_ids[byte] for byte in word]
        if -1 in tokens:  # the vocabulary lacks a byte: skipped, as in `tokenizers`
            tokens = [token for token in tokens if token >= 0]
        end, pairs = len(tokens), len(keys)
        after = list(range(1, end + 1))
        before = list(range(-1, end - 1))

        def candidate(at: int, key: int) -> None:
            place = bisect_left(keys, key)
            if place < pairs and keys[place] == key:
                heappush(queue, (ranks[place], at, place))

        queue: list[tuple[int, int, int]] = []
        for at in range(end - 1):
            key = tokens[at] << 32 | tokens[at + 1]
            place = bisect_left(keys, key)
            if place < pairs and keys[place] == key:
                queue.append((ranks[place], at, place))
        heapify(queue)
        while queue:
            _, at, place = heappop(queue)
            right = after[at]
            if right == end or keys[place] != tokens[at] << 32 | tokens[right]:
                continue
            token = tokens[at] = merged[place]
            tokens[right] = -1
            following = after[at] = after[right]
            if following < end:
                before[following] = at
                candidate(at, token << 32 | tokens[following])
            if before[at] >= 0:
                candidate(before[at], tokens[before[at]] << 32 | token)
        return [token for token in tokens if token >= 0]


class _AddedTokens:
    """Matches added tokens in a text: the leftmost first, then the longest."""

    def __init__(
        self, tokens: list[AddedToken], classes: memoryview, words: memoryview | None
    ) -> None:
        self._by_content = {token.content: token for token in tokens if token.content}
        # Even thousands of tokens have few first characters and few lengths: looking those up is
        # faster than one regular expression, and takes no time to build.
        lengths: dict[str, set[int]] = {}
        for content in self._by_content:
            lengths.setdefault(content[0], set()).add(len(content))
        self._lengths = {first: sorted(found)[::-1] for first, found in lengths.items()}
        self._first = re.compile("|".join(map(re.escape, self._lengths)) or r"(?!)")
        self._classes = classes
        self._words = words

    def split(self, text: str, allow_special: bool) -> Iterator[int | str]:
        """The text's sections, and the ids of the tokens between them."""
        done = 0
        for begin, token in self._find(text):
            end = begin + len(token.content)
            if token.special and not allow_special:
                continue
            if token.single_word and self._inside_a_word(text, begin, end):
                continue
            if token.lstrip:
                while begin and self._is_space(text[begin - 1]):
                    begin -= 1
                begin = max(begin, done)
            if token.rstrip:
                while end < len(text) and self._is_space(text[end]):
                    end += 1
            if begin > done:
                yield text[done:begin]
            if begin < end:  # unless an earlier token's rstrip covers this one
                yield token.id
            done = end
        if done < len(text):
            yield text[done:]

    def _find(self, text: str) -> Iterator[tuple[int, AddedToken]]:
        """Positions of non-overlapping tokens."""
        by_content, search, at = self._by_content, self._first.search, 0
        while match := search(text, at):
            begin = match.start()
            at = begin + 1
            for length in self._lengths[match[0]]:
                token = by_content.get(text[begin : begin + length])
                if token:
                    yield begin, token
                    at = begin + length
                    break

    def _is_space(self, character: str) -> bool:
        return chr(self._classes[ord(character)]) in " \t\n\v\f\r"

    def _inside_a_word(self, text: str, begin: int, end: int) -> bool:
        assert self._words is not None
        return bool(
            (begin and self._words[ord(text[begin - 1])])
            or (end < len(text) and self._words[ord(text[end])])
        )


def _checked(tensors: dict[str, Tensor], path: str) -> dict[str, memoryview]:
    """The tables, with their types, their sizes and a sample of their indices checked.

    No index can read outside the file, and the engine rejects ids outside the vocabulary.

    Raises:
        TokenizerError: a check fails; `pack` does not write such a file.
    """
    tables = {}
    for name, dtype in {**_DTYPES, **({"words": "U8"} if "words" in tensors else {})}.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != dtype or len(tensor.shape) != 1:
            raise TokenizerError(f"has no {name} of type {dtype}", file=path)
        if not tensor.is_aligned:
            raise TokenizerError(f"{name} is misaligned: pack the model again", file=path)
        tables[name] = tensor.items
    n_tokens, byte_ids = len(tables["token_kinds"]), tables["byte_ids"]
    ends, pair_ids = _sample(tables["token_ends"]), _sample(tables["pair_ids"])
    fits = (
        n_tokens
        and len(tables["token_ends"]) == n_tokens
        and tables["token_ends"][-1] == len(tables["token_bytes"])
        and ends == sorted(ends)
        and ends[-1] <= len(tables["token_bytes"])
        and len(byte_ids) == 256
        and min(byte_ids) >= -1
        and max(byte_ids) < n_tokens
        and len(tables["pair_keys"]) == len(tables["pair_ranks"]) == len(tables["pair_ids"])
        and max(pair_ids, default=0) < n_tokens
        and all(len(tables[n]) == _CHARACTERS for n in ("classes", "words") if n in tables)
    )
    if not fits:
        raise TokenizerError("has inconsistent tables: pack the model again", file=path)
    return tables


def _sample(table: memoryview) -> list[int]:
    """At most 2,000 numbers of a table in their order: all of them would take 3 ms."""
    return table[:: 1 + len(table) // _SAMPLE].tolist()
