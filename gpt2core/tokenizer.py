"""Text to ids and back: byte-level BPE, compiled or through the `tokenizers` package.

Decoding is done here on bytes, so that a stream of tokens gives the same characters as decoding
them at once, whatever token a character's bytes are split over.
"""

import codecs
import os
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Protocol

from gpt2core.errors import InvalidArgument, InvalidPrompt, TokenizerError
from gpt2core.layout import TABLES_FILE
from gpt2core.tokenizer_tables import Tables


class Backend(Protocol):
    """What a vocabulary has to answer: `tokenizer_tables.Tables` and `tokenizer_json.Json` do."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""

    @property
    def special(self) -> AbstractSet[int]:
        """The ids of special tokens."""

    @property
    def longest(self) -> int:
        """Bytes of the longest token; 0 where one may stand for more than its own."""

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """Ids of a text without surrogates."""

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes of a token; None for an id that is none."""


class Tokenizer:
    """Text to ids and back. Open one with `Tokenizer.open`; it may be shared between threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def open(cls, model_dir: str | os.PathLike[str]) -> "Tokenizer":
        """Map `tokenizer.safetensors`, or read `tokenizer.json` or `vocab.json` and `merges.txt`.

        Raises:
            TokenizerError: there are no such files, they are broken, or hold no byte-level BPE.
        """
        folder = os.fspath(model_dir)
        tables = os.path.join(folder, TABLES_FILE)
        if os.path.isfile(tables):
            return cls(Tables.open(tables))
        from gpt2core.tokenizer_json import Json

        return cls(Json.open(folder))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._backend.vocab_size

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of `text`. Special tokens in it are plain text unless `allow_special`.

        Raises:
            InvalidPrompt: `text` is no str or holds half of a surrogate pair, which has no bytes.
        """
        if not isinstance(text, str):
            raise InvalidPrompt(
                f"the prompt is {type(text).__name__}, not a string", param="prompt"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidPrompt(
                f"character {error.start} of the prompt is U+{ord(text[error.start]):04X}, half of"
                " a surrogate pair: send whole characters",
                param="prompt",
            ) from None  # the cause holds the text
        return self._backend.encode(text, allow_special)

    def least_tokens(self, text: str) -> int:
        """A lower bound of the number of tokens of `text`, without encoding it.

        Its bytes over those of the longest token; 0 where a token may stand for more than its own.
        """
        if len(text) < 4096:  # not worth a look at the vocabulary
            return 0
        longest = self._backend.longest
        return len(text.encode("utf-8", "replace")) // longest if longest else 0

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token adds to the text.

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
        """Text of `ids`. Bytes that are no UTF-8 become U+FFFD, as in the reference.

        Raises:
            InvalidArgument: an id that is not in the vocabulary.
        """
        pieces = (
            self.token_bytes(i) for i in ids if not (skip_special and i in self._backend.special)
        )
        return b"".join(pieces).decode("utf-8", "replace")

    def decoder(self) -> "StreamDecoder":
        """A decoder that takes one token after the other."""
        return StreamDecoder(self)


class StreamDecoder:
    """Tokens one by one to the text each makes certain; together they give `decode` of all."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def settled(self) -> bool:
        """Whether no character is waiting for its other bytes."""
        return not self._utf8.getstate()[0]

    def push(self, token: int) -> str:
        """The characters that are complete with this token, maybe none.

        Raises:
            TokenizerError: the model made an id that the vocabulary lacks.
        """
        try:
            return self._utf8.decode(self._tokenizer.token_bytes(token))
        except InvalidArgument as error:
            size = self._tokenizer.vocab_size
            raise TokenizerError(
                f"the model made token id {token} and the tokenizer has {size}: they do not match"
            ) from error

    def finish(self) -> str:
        """What remains: U+FFFD for a character that was never completed, else nothing."""
        return self._utf8.decode(b"", True)
