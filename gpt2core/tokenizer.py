"""GPT-2's byte-level BPE, through the `tokenizers` package.

Encoding is `tokenizers`' own. Decoding is done here on bytes, so that a stream of tokens gives
the same characters as decoding them at once, whatever token a character's bytes are split over.
"""

import codecs
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gpt2core.config import read_json
from gpt2core.errors import ConfigError, InvalidArgument, InvalidPrompt, TokenizerError

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


class Tokenizer:
    """Text to ids and back. Open one with `Tokenizer.open`; it may be shared between threads."""

    def __init__(self, rust: "RustTokenizer") -> None:
        self._rust = rust
        self._alphabet = byte_alphabet()
        self._bytes: dict[int, bytes] = {}
        self._longest = 0  # bytes of the longest token; 0 until somebody has asked
        self._special = {i for i, t in rust.get_added_tokens_decoder().items() if t.special}
        # `encode_special_tokens` is a setting of the whole object, so encoding takes turns.
        from threading import Lock

        self._lock = Lock()

    @classmethod
    def open(cls, model_dir: str | os.PathLike[str]) -> "Tokenizer":
        """Read `tokenizer.json`, or else `vocab.json` and `merges.txt`.

        Raises:
            TokenizerError: there are no such files, they are broken, or hold no byte-level BPE.
        """
        folder = os.fspath(model_dir)
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
        return self._rust.get_vocab_size()

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
        with self._lock:
            self._rust.encode_special_tokens = not allow_special
            return self._rust.encode(text).ids

    def least_tokens(self, text: str) -> int:
        """A lower bound of the number of tokens of `text`, without encoding it.

        Its bytes over those of the longest token; 0 where a token may stand for more than its own.
        """
        if len(text) < 4096:  # not worth a look at the vocabulary
            return 0
        added = self._rust.get_added_tokens_decoder().values()
        if self._rust.normalizer is not None or any(t.lstrip or t.rstrip for t in added):
            return 0
        if not self._longest:
            # One character of a piece is one byte, or more in an added token.
            self._longest = max(len(piece.encode()) for piece in self._rust.get_vocab())
        return len(text.encode("utf-8", "replace")) // self._longest

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token adds to the text.

        Raises:
            InvalidArgument: no token has this id.
        """
        known = self._bytes.get(token)
        if known is not None:
            return known
        piece = None
        if hasattr(token, "__index__") and 0 <= token < 1 << 32:
            piece = self._rust.id_to_token(int(token))
        if piece is None:
            raise InvalidArgument(f"token id {token!r} is not in the vocabulary", param="ids")
        try:
            raw = bytes(self._alphabet[c] for c in piece)
        except KeyError:  # an added token, which is stored as plain text
            raw = piece.encode()
        self._bytes[token] = raw
        return raw

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of `ids`. Bytes that are no UTF-8 become U+FFFD, as in the reference.

        Raises:
            InvalidArgument: an id that is not in the vocabulary.
        """
        pieces = (self.token_bytes(i) for i in ids if not (skip_special and i in self._special))
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
