"""`tokenizer.json`, or `vocab.json` and `merges.txt`, through the `tokenizers` package."""

import os
from threading import Lock
from typing import TYPE_CHECKING, Any

from gpt2core.config import read_json
from gpt2core.errors import ConfigError, TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer

END_OF_TEXT = "<|endoftext|>"


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a GPT-2 vocabulary, character -> byte.

    Printable Latin-1 stands for itself, the other 68 bytes for U+0100 and up
    (https://github.com/openai/gpt-2, `src/encoder.py`, `bytes_to_unicode`).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


class Json:
    """A tokenizer of the package, with the methods of `tokenizer_tables.Tables`."""

    def __init__(self, rust: "RustTokenizer") -> None:
        self.rust = rust
        self._alphabet = byte_alphabet()
        added = rust.get_added_tokens_decoder()
        self.special = frozenset(i for i, token in added.items() if token.special)
        self._longest = -1  # until somebody has asked
        # `encode_special_tokens` is a setting of the whole object, so encoding takes turns.
        self._lock = Lock()

    @classmethod
    def open(cls, folder: str) -> "Json":
        """Read `tokenizer.json`, or else `vocab.json` and `merges.txt`.

        Raises:
            TokenizerError: there are no such files, they are broken, or hold no byte-level BPE.
        """
        path = os.path.join(folder, "tokenizer.json")
        if not os.path.isfile(path):
            vocab, path = os.path.join(folder, "vocab.json"), os.path.join(folder, "merges.txt")
            for file in (vocab, path):
                if not os.path.isfile(file):
                    raise TokenizerError(
                        "no tokenizer here: add tokenizer.json, or vocab.json and merges.txt",
                        file=folder,
                    )
        from tokenizers import Tokenizer as RustTokenizer  # 25 ms

        try:
            if path.endswith("tokenizer.json"):
                rust = RustTokenizer.from_file(path)
            else:
                rust = _from_vocabulary(folder, vocab, path)
        except (TokenizerError, MemoryError):
            raise
        except (
            Exception
        ) as error:  # the package raises bare `Exception` for anything it cannot read
            raise TokenizerError(f"is no tokenizer ({error})", file=path) from error
        return cls(_checked(rust, path))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self.rust.get_vocab_size()

    @property
    def longest(self) -> int:
        """Bytes of the longest token; 0 where one may stand for more than its own."""
        if self._longest < 0:
            added = self.rust.get_added_tokens_decoder().values()
            grows = self.rust.normalizer is not None or any(t.lstrip or t.rstrip for t in added)
            # One character of a piece is one byte, or more in an added token.
            pieces = (len(piece.encode()) for piece in self.rust.get_vocab())
            self._longest = 0 if grows else max(pieces)
        return self._longest

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """Ids of a text without surrogates; special tokens in it are text unless allowed."""
        with self._lock:
            self.rust.encode_special_tokens = not allow_special
            return self.rust.encode(text).ids

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes of a token; None for an id that is none."""
        piece = self.rust.id_to_token(token) if 0 <= token < 1 << 32 else None
        if piece is None:
            return None
        try:
            return bytes(self._alphabet[character] for character in piece)
        except KeyError:  # an added token, which is stored as plain text
            return piece.encode()


def _from_vocabulary(folder: str, vocab: str, merges: str) -> "RustTokenizer":
    """GPT-2's original pair of files, with the added tokens that stand beside them."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as RustTokenizer

    def optional(name: str) -> dict[str, Any]:
        path = os.path.join(folder, name)
        try:
            return read_json(path) if os.path.exists(path) else {}
        except ConfigError as error:
            raise TokenizerError(error.problem, file=path) from error

    prefix = optional("tokenizer_config.json").get("add_prefix_space", False) is True
    rust = RustTokenizer(models.BPE.from_file(vocab, merges))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    rust.decoder = decoders.ByteLevel()
    if rust.token_to_id(END_OF_TEXT) is not None:
        rust.add_special_tokens([AddedToken(END_OF_TEXT, normalized=True)])
    for content, token in sorted(optional("added_tokens.json").items(), key=lambda item: item[1]):
        rust.add_special_tokens([AddedToken(content, normalized=False)])
        if rust.token_to_id(content) != token:
            raise TokenizerError(
                f"added token {content!r} cannot have id {token!r}: ids continue the vocabulary",
                file=os.path.join(folder, "added_tokens.json"),
            )
    return rust


def _checked(rust: "RustTokenizer", path: str) -> "RustTokenizer":
    """A tokenizer of the GPT-2 family that neither cuts nor pads what it is given."""
    from tokenizers import decoders, models

    if not isinstance(rust.model, models.BPE) or not isinstance(rust.decoder, decoders.ByteLevel):
        kind = f"{type(rust.model).__name__} with {type(rust.decoder).__name__} decoder"
        raise TokenizerError(f"is {kind}, not byte-level BPE", file=path)
    rust.no_truncation()
    rust.no_padding()
    return rust
