"""GPT-2's tokenizer from `tokenizer.json`, without the `tokenizers` package.

The package takes about 80 ms to import and to read the file, this takes 35. Only text outside ASCII
imports it (25 ms), because its version of Unicode decides where such text is split.
"""

import os
from collections.abc import Iterable

from gpt2core.config import read_json
from gpt2core.errors import ConfigError, TokenizerError
from gpt2core.files.names import (
    ADDED_TOKENS_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
)
from gpt2core.startup.slim_typing import Any
from gpt2core.tokenizer.bpe import AddedToken, ByteLevelBPE, byte_alphabet, piece_bytes
from gpt2core.tokenizer.pretrained import GPT2_CLASSES, class_name
from gpt2core.tokenizer.special_tokens import END_OF_TEXT, read_optional

_SAMPLE = 200
# Settings that do not change the ids, with any value and with these values.
_IGNORED = ("backend", "clean_up_tokenization_spaces", "errors", "is_local", "local_files_only",
            "model_max_length", "name_or_path", "padding_side", "special_tokens_map_file",
            "tokenizer_class", "truncation_side")  # fmt: skip
_FLAGS = ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens")
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


class PlainTokenizer(ByteLevelBPE):
    """A vocabulary and its merges, with `<|endoftext|>` as the only added token. Thread-safe."""

    form = TOKENIZER_FILE

    def __init__(self, vocab: dict[str, int], merges: list[str], file: str) -> None:
        """A tokenizer.

        Args:
            vocab: the id of each token, from 0 on; has all characters of the byte alphabet.
            merges: pairs of tokens, separated by a space, in the order of their ranks.
            file: for error messages.
        """
        end = AddedToken(vocab[END_OF_TEXT], END_OF_TEXT, True, False, False, False, False)
        self._alphabet = byte_alphabet()
        by_byte = sorted(self._alphabet, key=self._alphabet.__getitem__)
        super().__init__([vocab[character] for character in by_byte], [end])
        self.vocab_size = len(vocab)
        self._vocab = vocab
        self._tokens = list(vocab)
        self._ranks = dict(zip(merges, range(len(merges)), strict=True))  # the last of equals
        self._file = file

    @classmethod
    def open(cls, folder: str) -> "PlainTokenizer | None":
        """Read `tokenizer.json`; None if that needs the package, or is left to its errors."""
        path = os.path.join(folder, TOKENIZER_FILE)
        if not os.path.isfile(path) or os.path.exists(os.path.join(folder, ADDED_TOKENS_FILE)):
            return None
        try:
            settings = read_optional(folder, TOKENIZER_CONFIG_FILE)
            names = read_optional(folder, SPECIAL_TOKENS_FILE)
            if class_name(folder, settings) not in (None, *GPT2_CLASSES):
                return None
            fields = read_json(path)
            vocab, merges = fields["model"]["vocab"], fields["model"]["merges"]
            vocab.setdefault(END_OF_TEXT, len(vocab))  # where the package adds it
            if not _is_plain(fields, {**settings, **names}):
                return None
            if merges and isinstance(merges[0], list):  # the package writes both
                merges = [f"{left} {right}" for left, right in merges]
            return cls(vocab, merges, path) if _is_consistent(vocab, merges) else None
        except (AttributeError, ConfigError, KeyError, TokenizerError, TypeError, ValueError):
            return None

    @property
    def longest_token(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self._vocab))  # a character is a byte

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes of a token; None if there is no such id."""
        if not 0 <= token < len(self._tokens):
            return None
        return piece_bytes(self._tokens[token], self._alphabet)

    def _pieces(self, section: str) -> Iterable[str]:
        if section.isascii():
            return super()._pieces(section)
        from tokenizers.pre_tokenizers import ByteLevel

        splits = ByteLevel(add_prefix_space=False).pre_tokenize_str(section)
        return [section[begin:end] for _, (begin, end) in splits]

    def _pair(self, left: int, right: int) -> tuple[int, int] | None:
        first, second = self._tokens[left], self._tokens[right]
        rank = self._ranks.get(f"{first} {second}")
        if rank is None:
            return None
        token = self._vocab.get(first + second)
        if token is None:
            raise TokenizerError(f"merge {rank} gives no token of the vocabulary", file=self._file)
        return rank, token


def _is_plain(fields: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a tokenizer, and the files beside it, use no more than `PlainTokenizer` has.

    Raises:
        AttributeError, KeyError, TypeError: the fields are not those of a BPE tokenizer.
    """
    model, pre_tokenizer = fields["model"], fields["pre_tokenizer"]
    processor = fields.get("post_processor")
    options = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges",
               "byte_fallback")  # fmt: skip
    added = fields["added_tokens"]
    return (
        fields.get("normalizer") is None
        and pre_tokenizer["type"] == fields["decoder"]["type"] == "ByteLevel"
        and pre_tokenizer.get("use_regex", True) is True
        and (processor is None or processor["type"] == "ByteLevel")  # it changes offsets only
        and model.get("type", "BPE") == "BPE"
        and not any(model.get(option) for option in options)
        and len(added) == 1
        and _is_end_of_text(added[0])
        and added[0]["special"] is True
        and added[0]["id"] == model["vocab"][END_OF_TEXT]
        and all(_is_default(name, value, added[0]["id"]) for name, value in settings.items())
    )


def _is_default(name: str, value: Any, end_id: int) -> bool:
    """Whether a setting of the tokenizer changes nothing."""
    if name == "added_tokens_decoder":
        return list(value) == [str(end_id)] and _is_end_of_text(value[str(end_id)])
    return (
        name in _IGNORED
        or (name in _FLAGS and value is False)
        or (name in _NAMED and value in (None, END_OF_TEXT))
    )


def _is_end_of_text(token: dict[str, Any]) -> bool:
    flags = ("single_word", "lstrip", "rstrip")
    return token.get("content") == END_OF_TEXT and not any(token.get(flag) for flag in flags)


def _is_consistent(vocab: dict[str, int], merges: list[str]) -> bool:
    """Whether ids count from 0, all bytes have one, and a sample of the merges is valid.

    All merges would take 17 ms; `PlainTokenizer` reports an invalid one when a text needs it.
    """
    sample = merges[:: 1 + len(merges) // _SAMPLE]
    return (
        set(map(type, vocab.values())) == {int}
        and list(vocab.values()) == list(range(len(vocab)))
        and byte_alphabet().keys() <= vocab.keys()
        and all(merge.count(" ") == 1 for merge in sample)
        and all(part in vocab for merge in sample for part in merge.split(" "))
        and all(merge.replace(" ", "") in vocab for merge in sample)
    )
