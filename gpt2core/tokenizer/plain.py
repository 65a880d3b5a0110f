"""GPT-2's tokenizer from `tokenizer.json`, without the `tokenizers` package.

It takes 40 ms; the package takes 80 to be imported and to read the file. Only text outside ASCII
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
from gpt2core.tokenizer.special_tokens import END_OF_TEXT, NAMED_TOKENS, read_optional

# Settings in `tokenizer_config.json` that do not change the ids.
_IGNORED = ("backend", "chat_template", "clean_up_tokenization_spaces", "errors", "is_local",
            "local_files_only", "model_max_length", "name_or_path", "padding_side",
            "special_tokens_map_file", "tokenizer_class", "truncation_side")  # fmt: skip
# Settings that do not change the ids if they are false, or empty.
_OFF = ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens")
_EMPTY = ("additional_special_tokens", "extra_special_tokens")
# Options of the model that must be absent, false or empty.
_MODEL_OPTIONS = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges",
                  "byte_fallback")  # fmt: skip


class PlainTokenizer(ByteLevelBPE):
    """A vocabulary and its merges, with `<|endoftext|>` as the only added token. Thread-safe."""

    implementation = TOKENIZER_FILE

    def __init__(self, vocab: dict[str, int], merges: list[str]) -> None:
        """A tokenizer.

        Args:
            vocab: the id of each token, from 0 on; has all characters of the byte alphabet.
            merges: pairs of tokens, separated by a space, in the order of their ranks; `vocab` has
                every result.
        """
        end = AddedToken(
            id=vocab[END_OF_TEXT],
            content=END_OF_TEXT,
            special=True,
            normalized=False,
            single_word=False,
            lstrip=False,
            rstrip=False,
        )
        self._alphabet = byte_alphabet()
        by_byte = sorted(self._alphabet, key=self._alphabet.__getitem__)
        super().__init__([vocab[character] for character in by_byte], [end])
        self.vocab_size = len(vocab)
        self._vocab = vocab
        self._tokens = list(vocab)
        self._ranks = dict(zip(merges, range(len(merges)), strict=True))
        self._longest = 0  # not computed yet

    @classmethod
    def open(cls, folder: str) -> "PlainTokenizer | None":
        """Read `tokenizer.json`, which is not checked completely.

        Returns:
            None if there is no such file, if the files use other features, or if they are invalid:
            the package then reads them or reports the error.
        """
        path = os.path.join(folder, TOKENIZER_FILE)
        if not os.path.isfile(path) or os.path.exists(os.path.join(folder, ADDED_TOKENS_FILE)):
            return None
        try:
            settings = read_optional(folder, TOKENIZER_CONFIG_FILE)
            decoder = settings.pop("added_tokens_decoder", None)
            names = read_optional(folder, SPECIAL_TOKENS_FILE)
            if (
                class_name(folder, settings) not in (None, *GPT2_CLASSES)
                or not all(_changes_nothing(*item) for item in settings.items())
                or not all(key in NAMED_TOKENS and _is_default(names[key]) for key in names)
            ):
                return None
            fields = read_json(path)
            vocab, merges = fields["model"]["vocab"], fields["model"]["merges"]
            vocab.setdefault(END_OF_TEXT, len(vocab))  # where the package adds it
            end_id = vocab[END_OF_TEXT]
            if not _is_plain(fields) or not (decoder is None or _is_only_end(decoder, end_id)):
                return None
            if merges and isinstance(merges[0], list):  # the package has written both forms
                merges = [f"{left} {right}" for left, right in merges]
            return cls(vocab, merges) if _is_consistent(vocab, merges) else None
        except (AttributeError, ConfigError, KeyError, TokenizerError, TypeError, ValueError):
            return None

    @property
    def longest_token(self) -> int:
        """Bytes of the longest token."""
        if not self._longest:
            self._longest = max(map(len, self._vocab))  # a character is a byte
        return self._longest

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
        return None if rank is None else (rank, self._vocab[first + second])


def _is_plain(fields: dict[str, Any]) -> bool:
    """Whether `tokenizer.json` uses only features that `PlainTokenizer` supports.

    Raises:
        AttributeError, KeyError, TypeError: the fields are not those of a BPE tokenizer.
    """
    model, pre_tokenizer = fields["model"], fields["pre_tokenizer"]
    processor, added = fields.get("post_processor"), fields["added_tokens"]
    return (
        fields.get("normalizer") is None
        and pre_tokenizer["type"] == fields["decoder"]["type"] == "ByteLevel"
        and pre_tokenizer.get("use_regex", True) is True
        and (processor is None or processor["type"] == "ByteLevel")  # it changes offsets only
        and model.get("type", "BPE") == "BPE"
        and not any(model.get(option) for option in _MODEL_OPTIONS)
        and len(added) == 1
        and _is_only_end({str(added[0]["id"]): added[0]}, model["vocab"][END_OF_TEXT])
    )


def _changes_nothing(name: str, value: Any) -> bool:
    """Whether the ids are the same without a setting in `tokenizer_config.json`."""
    return (
        name in _IGNORED
        or (name in _OFF and value is False)
        or (name in _EMPTY and not value)
        or (name in NAMED_TOKENS and _is_default(value) and type(value) is not dict)
    )


def _is_default(value: Any) -> bool:
    """Whether a named token is `<|endoftext|>` or none: it is then not added."""
    return value in (None, END_OF_TEXT) or (type(value) is dict and _is_end_of_text(value))


def _is_only_end(tokens: dict[str, Any], end_id: int) -> bool:
    """Whether added tokens are `<|endoftext|>` alone, as a special token."""
    (token,) = tokens.values() if len(tokens) == 1 else ({},)
    return [*tokens] == [str(end_id)] and _is_end_of_text(token) and token["special"] is True


def _is_end_of_text(token: dict[str, Any]) -> bool:
    flags = ("single_word", "lstrip", "rstrip")
    return token.get("content") == END_OF_TEXT and not any(token.get(flag) for flag in flags)


def _is_consistent(vocab: dict[str, int], merges: list[str]) -> bool:
    """Whether ids count from 0, all bytes have one, and merges give tokens in the same order.

    All merges are compared as one text, in 4 ms. Their parts are not checked: a merge whose parts
    are no tokens is never used.

    Raises:
        KeyError, TypeError: the merges are invalid.
    """
    text = "\n".join(merges)
    results = text.replace(" ", "")
    begin = vocab[results.partition("\n")[0]] if merges else 0
    return (
        isinstance(merges, list)
        and set(map(type, vocab.values())) == {int}
        and list(vocab.values()) == list(range(len(vocab)))
        and byte_alphabet().keys() <= vocab.keys()
        and text.count(" ") == len(merges)
        and results == "\n".join([*vocab][begin : begin + len(merges)])
    )
