"""Byte-level BPE with the `tokenizers` package."""

from threading import Lock

from gpt2core.errors import TokenizerError
from gpt2core.startup.slim_typing import TYPE_CHECKING
from gpt2core.tokenizer.bpe import byte_alphabet, piece_bytes
from gpt2core.tokenizer.pretrained import is_plain, open_pretrained

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer


class HuggingFaceBackend:
    """A tokenizer of the package with the interface `tokenizer.Backend`.

    `split_special`: special tokens in a text are always plain text.
    """

    implementation = "tokenizers package"

    def __init__(self, rust: "RustTokenizer", split_special: bool = False) -> None:
        self.rust = rust
        self.split_special = split_special
        self._alphabet = byte_alphabet()
        # The package keeps treating a token as special after its flag has been cleared.
        self.special = frozenset(
            i
            for i, token in rust.get_added_tokens_decoder().items()
            if token.special or not rust.decode([i], skip_special_tokens=True)
        )
        self._longest = -1  # not computed yet
        # `encode_special_tokens` is a property of the object, so calls to `encode` are serialized.
        self._lock = Lock()

    @classmethod
    def open(cls, folder: str) -> "HuggingFaceBackend":
        """Read `tokenizer.json`, or else `vocab.json` and `merges.txt`.

        Raises:
            TokenizerError: the files are missing, invalid or not byte-level BPE.
        """
        return cls(*open_pretrained(folder))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self.rust.get_vocab_size()

    @property
    def longest_token(self) -> int:
        """Bytes of the longest token; 0 if a token may replace more text than its own bytes."""
        if self._longest < 0:
            self._longest = self._find_longest()
        return self._longest

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """Ids of a text without surrogates; special tokens are plain text unless allowed."""
        with self._lock:
            self.rust.encode_special_tokens = self.split_special or not allow_special
            try:
                return self.rust.encode(text).ids
            except BaseException as error:
                # It panics if added tokens strip each other's white space. The message must not
                # contain the text.
                if type(error).__name__ != "PanicException":
                    raise
                problem = "the tokenizer cannot encode this prompt: its added tokens overlap"
                raise TokenizerError(problem) from None

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes of a token; None if there is no such id."""
        piece = self.rust.id_to_token(token) if 0 <= token < 1 << 32 else None
        return None if piece is None else piece_bytes(piece, self._alphabet)

    def _find_longest(self) -> int:
        """0 unless every token represents exactly its own bytes."""
        rust = self.rust
        added = rust.get_added_tokens_decoder().values()
        pieces = rust.get_vocab()
        if (
            not is_plain(rust)
            or any(character not in pieces for character in self._alphabet)
            or any(token.lstrip or token.rstrip for token in added)
        ):
            return 0
        # One character of a vocabulary entry is one byte, except in added tokens.
        return max([*map(len, pieces), *(len(token.content.encode()) for token in added)])
