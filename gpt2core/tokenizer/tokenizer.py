"""Text to ids and back: byte-level BPE, compiled, in Python, or with the `tokenizers` package.

Decoding works on bytes, so that streaming gives the same text as decoding all tokens at once, even
if the bytes of a character are split over tokens.
"""

import codecs
import os
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from gpt2core.errors import InvalidArgument, InvalidPrompt, TablesFormatError, TokenizerError
from gpt2core.files.names import (
    MERGES_FILE,
    TABLES_FILE,
    TOKENIZER_FILE,
    follow_current,
    tokenizer_files,
)
from gpt2core.startup.slim_typing import Protocol
from gpt2core.tokenizer.tables import Tables


class Backend(Protocol):
    """What reads the vocabulary: `Tables`, `PlainTokenizer` or `HuggingFaceBackend`."""

    @property
    def implementation(self) -> str:
        """See `Tokenizer.implementation`."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""

    @property
    def special(self) -> AbstractSet[int]:
        """The ids of special tokens."""

    @property
    def longest_token(self) -> int:
        """Bytes of the longest token; 0 if a token may replace more text than its own bytes."""

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """Ids of a text without surrogates."""

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes of a token; None if there is no such id."""


class Tokenizer:
    """Text to ids and back. Open one with `Tokenizer.open`. Thread-safe."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def open(cls, model_dir: str | os.PathLike[str]) -> "Tokenizer":
        """Map the compiled `tokenizer.safetensors`.

        If it is missing, or the raw files next to it have changed since it was compiled, read
        `tokenizer.json`, or else `vocab.json` and `merges.txt`: without the `tokenizers` package if
        `PlainTokenizer` supports them.

        Raises:
            TokenizerError: the files are missing, invalid or not byte-level BPE.
            ModelError: `CURRENT` in the directory does not name a model.
        """
        folder = follow_current(os.fspath(model_dir))
        tables = os.path.join(folder, TABLES_FILE)
        if os.path.isfile(tables):
            sources = _sources(folder)
            try:
                opened = Tables.open(tables)
                if not sources or not _changed(folder, sources, opened.source):
                    return cls(opened)
            except TablesFormatError as error:
                if not sources:
                    raise
                from warnings import warn

                warn(f"{error}; using the raw tokenizer files", stacklevel=2)
        from gpt2core.tokenizer.plain import PlainTokenizer

        plain = PlainTokenizer.open(folder)
        if plain:
            return cls(plain)
        from gpt2core.tokenizer.huggingface import HuggingFaceBackend

        return cls(HuggingFaceBackend.open(folder))

    @property
    def implementation(self) -> str:
        """The implementation in use: "compiled", "tokenizer.json" or "tokenizers package"."""
        return self._backend.implementation

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._backend.vocab_size

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of `text`. Special tokens in it are plain text unless `allow_special`.

        Raises:
            InvalidPrompt: `text` is not a str, or has a lone surrogate, which cannot be encoded.
            TokenizerError: added tokens overlap in `text` (raw tokenizer files only).
        """
        if not isinstance(text, str):
            raise InvalidPrompt(
                f"the prompt is of type {type(text).__name__}, not a string", param="prompt"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidPrompt(
                f"character {error.start} of the prompt is the lone surrogate"
                f" U+{ord(text[error.start]):04X}: send complete characters",
                param="prompt",
            ) from None  # the cause contains the text
        return self._backend.encode(text, allow_special)

    def min_tokens(self, text: str) -> int:
        """A lower bound for the number of tokens of `text`, without encoding it.

        The length of the text divided by that of the longest token, in bytes; 0 if a token may
        replace more text than its own bytes.
        """
        if len(text) < 4096:  # encoding is fast enough
            return 0
        longest = self._backend.longest_token
        return len(text.encode("utf-8", "replace")) // longest if longest else 0

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token.

        Raises:
            InvalidArgument: no token has this id.
        """
        known = self._bytes.get(token)
        if known is None:
            known = self._backend.token_bytes(int(token)) if hasattr(token, "__index__") else None
            if known is None:
                raise InvalidArgument(f"token id {token!r} is not in the vocabulary", param="ids")
            self._bytes[token] = known
        return known

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of `ids`. Invalid UTF-8 becomes U+FFFD, as in `transformers`.

        Raises:
            InvalidArgument: an id is not in the vocabulary.
        """
        pieces = (self.token_bytes(i) for i in ids if not (skip_special and self.is_special(i)))
        return b"".join(pieces).decode("utf-8", "replace")

    def is_special(self, token: int) -> bool:
        """Whether a token is special: `skip_special` leaves it out of the text."""
        return token in self._backend.special

    def decoder(self, skip_special: bool = False) -> "StreamDecoder":
        """An incremental decoder."""
        return StreamDecoder(self, skip_special)


def _sources(folder: str) -> list[str]:
    """The raw files of the tokenizer; empty if they are incomplete."""
    found = tokenizer_files(os.listdir(folder))
    return found if {TOKENIZER_FILE, MERGES_FILE}.intersection(found) else []


def _changed(folder: str, names: list[str], source: dict[str, str]) -> bool:
    """Whether the raw files differ from those that the tokenizer was compiled from."""
    if not source:
        return False  # not recorded
    from hashlib import file_digest  # 1 ms; needed only if both forms exist

    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            if source.get(name) != file_digest(file, "sha256").hexdigest():
                return True
    return len(source) != len(names)


class StreamDecoder:
    """Decodes token by token; the concatenated results equal `decode` of all tokens."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def has_pending(self) -> bool:
        """Whether the bytes of an incomplete character are held back."""
        return bool(self._utf8.getstate()[0])

    def push(self, token: int) -> str:
        """The characters that this token completes, possibly "".

        Raises:
            TokenizerError: the model generated an id that is not in the vocabulary.
        """
        if self._skip_special and self._tokenizer.is_special(token):
            return ""
        try:
            return self._utf8.decode(self._tokenizer.token_bytes(token))
        except InvalidArgument as error:
            size = self._tokenizer.vocab_size
            raise TokenizerError(
                f"the model generated token id {token}, but the tokenizer has {size} tokens:"
                " tokenizer and model do not match"
            ) from error

    def finish(self) -> str:
        """End the text; returns U+FFFD if a character is incomplete, else ""."""
        return self._utf8.decode(b"", True)
