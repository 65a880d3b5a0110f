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
from bisect import bisect_left

from gpt2core.errors import CheckpointError, TablesFormatError, TokenizerError
from gpt2core.files.safetensors import Tensor, open_with_metadata
from gpt2core.startup.slim_typing import Any
from gpt2core.tokenizer.bpe import AddedToken, ByteLevelBPE

FORMAT = "gpt2-tokenizer-2"
_DTYPES = {"token_bytes": "U8", "token_ends": "U32", "token_kinds": "U8", "byte_ids": "I32",
           "pair_keys": "U64", "pair_ranks": "U32", "pair_ids": "U32", "classes": "U8"}  # fmt: skip
_CHARACTERS = 0x110000
_SAMPLE = 2000


class Tables(ByteLevelBPE):
    """An open `tokenizer.safetensors`. Thread-safe."""

    implementation = "compiled"

    def __init__(self, tensors: dict[str, Tensor], options: dict[str, Any], path: str) -> None:
        tables = _checked(tensors, path)
        self._bytes = tables["token_bytes"]
        self._ends = tables["token_ends"]
        self._kinds = tables["token_kinds"]
        self._keys = tables["pair_keys"]
        self._n_pairs = len(self._keys)
        self._ranks = tables["pair_ranks"]
        self._ids = tables["pair_ids"]
        super().__init__(
            tables["byte_ids"].tolist(),
            [AddedToken(*fields) for fields in options["added_tokens"]],
            classes=tables["classes"],
            words=tables.get("words"),
            add_prefix_space=bool(options["add_prefix_space"]),
            before=options["before"],
            after=options["after"],
            split_special=bool(options["split_special"]),
        )
        self.vocab_size: int = options["vocab_size"]
        self.longest_token = int(options["longest"])
        """Bytes of the longest token; 0 if a token may replace more text than its own bytes."""
        self.source: dict[str, str] = {}
        """SHA-256 of the files that the tables were compiled from; {} if unknown."""

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

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes of a token; None if there is no such id."""
        if not 0 <= token < len(self._ends) or not self._kinds[token]:
            return None
        begin = self._ends[token - 1] if token else 0
        return bytes(self._bytes[begin : self._ends[token]])

    def _pair(self, left: int, right: int) -> tuple[int, int] | None:
        key = left << 32 | right
        place = bisect_left(self._keys, key)
        if place < self._n_pairs and self._keys[place] == key:
            return self._ranks[place], self._ids[place]
        return None


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
