"""Byte-level BPE as in GPT-2: splitting a text, merging bytes to tokens, added tokens."""

import re
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush

from gpt2core.startup.slim_typing import NamedTuple

# GPT-2's pattern (https://github.com/openai/gpt-2, `src/encoder.py`) for text in which every
# character outside ASCII has been replaced by the ASCII character of its class.
_PIECES = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)
LETTER, NUMBER, SPACE, OTHER = "A", "0", "\t", "!"
_CACHED_WORDS = 10_000
_CACHED_CHARACTERS = 64


def byte_alphabet() -> dict[str, int]:
    """Map the characters of a GPT-2 vocabulary to the bytes that they represent.

    Printable Latin-1 characters represent themselves, U+0100 and up the other 68 bytes
    (https://github.com/openai/gpt-2, `src/encoder.py`, `bytes_to_unicode`).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def piece_bytes(piece: str, alphabet: dict[str, int]) -> bytes:
    """The bytes of a vocabulary entry, or the UTF-8 of one that is not in the alphabet.

    Added tokens are stored as plain text. A lone surrogate becomes a question mark.
    """
    try:
        return bytes([alphabet[character] for character in piece])
    except KeyError:
        return piece.encode("utf-8", "replace")


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


class ByteLevelBPE:
    """Text to ids; subclasses look up the merges in `_pair`. Thread-safe."""

    def __init__(
        self,
        byte_ids: Sequence[int],
        added: Iterable[AddedToken],
        *,
        classes: memoryview | None = None,
        words: memoryview | None = None,
        add_prefix_space: bool = False,
        before: Sequence[int] = (),
        after: Sequence[int] = (),
        split_special: bool = False,
    ) -> None:
        """A tokenizer.

        Args:
            byte_ids: the token of each byte, or -1.
            added: the added tokens.
            classes: for each code point an ASCII character of the same class; needed for text
                outside ASCII and for added tokens with `lstrip` or `rstrip`.
            words: for each code point whether it is a word character; needed for added tokens with
                `single_word`.
            add_prefix_space: whether a text, or a part of it after an added token, that does not
                begin with a space gets one.
            before: ids before every text.
            after: ids after every text.
            split_special: whether special tokens in a text are always plain text.
        """
        added = list(added)
        self.special = frozenset(token.id for token in added if token.special)
        self._byte_ids = byte_ids
        self._classes = classes
        self._prefix_space = add_prefix_space
        self._before, self._after = list(before), list(after)
        self._split_special = split_special
        # Tokens that are not normalized are matched first.
        self._added = [
            _AddedTokens(group, classes, words)
            for wanted in (False, True)
            if (group := [token for token in added if token.normalized is wanted])
        ]
        self._cache: dict[str, list[int]] = {}

    def _pair(self, left: int, right: int) -> tuple[int, int] | None:
        """The rank of the merge of two tokens and the resulting token, or None."""
        raise NotImplementedError

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """Ids of a text without surrogates; special tokens are plain text unless allowed.

        Takes O(n log n) for n characters.
        """
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

    def _pieces(self, section: str) -> Iterable[str]:
        """Split a section into pieces as GPT-2 does; merges stay inside a piece."""
        if self._prefix_space and not section.startswith(" "):
            section = " " + section
        if section.isascii():
            return _PIECES.findall(section)
        assert self._classes is not None
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
        invalidated are recognized by their tokens.
        """
        byte_ids, pair = self._byte_ids, self._pair
        tokens = [byte_ids[byte] for byte in word]
        if -1 in tokens:  # the vocabulary lacks a byte: skipped, as in `tokenizers`
            tokens = [token for token in tokens if token >= 0]
        end = len(tokens)
        after = list(range(1, end + 1))
        before = list(range(-1, end - 1))
        queue: list[tuple[int, int, int, int, int]] = []

        def add_pair(at: int) -> None:
            right = after[at]
            if right < end and (found := pair(tokens[at], tokens[right])):
                rank, token = found
                heappush(queue, (rank, at, tokens[at], tokens[right], token))

        for at in range(end):
            add_pair(at)
        while queue:
            _, at, left_token, right_token, token = heappop(queue)
            right = after[at]
            if right == end or tokens[at] != left_token or tokens[right] != right_token:
                continue
            tokens[at], tokens[right] = token, -1
            after[at] = after[right]
            if after[at] < end:
                before[after[at]] = at
            add_pair(at)
            if before[at] >= 0:
                add_pair(before[at])
        return [token for token in tokens if token >= 0]


class _AddedTokens:
    """Matches added tokens in a text: the leftmost first, then the longest."""

    def __init__(
        self, tokens: list[AddedToken], classes: memoryview | None, words: memoryview | None
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
        assert self._classes is not None
        return chr(self._classes[ord(character)]) in " \t\n\v\f\r"

    def _inside_a_word(self, text: str, begin: int, end: int) -> bool:
        assert self._words is not None
        return bool(
            (begin and self._words[ord(text[begin - 1])])
            or (end < len(text) and self._words[ord(text[end])])
        )
