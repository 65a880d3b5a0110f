"""Reads the files of a GPT-2 tokenizer as `transformers` does.

Follows `PreTrainedTokenizerBase._from_pretrained`, `TokenizersBackend.__init__` and `GPT2Tokenizer`
of `transformers` 5.24. There, `AutoTokenizer` selects one of two ways by `tokenizer_class`:

- `GPT2Tokenizer` reads vocabulary, merges and post-processor from `tokenizer.json`, or from
  `vocab.json` and `merges.txt`. `add_prefix_space` comes from `tokenizer_config.json`, and there is
  no normalizer or dropout.
- Any other class uses `tokenizer.json` unchanged.

Added tokens, their order and their flags are the same for both.
"""

import os

from gpt2core.errors import TokenizerError
from gpt2core.files.names import (
    CONFIG_FILE,
    MERGES_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
)
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any, NamedTuple
from gpt2core.tokenizer.special_tokens import SpecialTokens, read_optional

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as RustTokenizer

GPT2_CLASSES = ("GPT2Tokenizer", "CodeGenTokenizer")  # both read their files the same way
_GENERIC_CLASSES = ("TokenizersBackend", "PreTrainedTokenizer", "PythonBackend")


class Pretrained(NamedTuple):
    """A tokenizer of the `tokenizers` package, built from the files."""

    rust: "RustTokenizer"
    split_special: bool
    """Whether special tokens in a text are always plain text, as `tokenizer_config.json` says."""


def open_pretrained(folder: str) -> Pretrained:
    """Read `tokenizer.json`, or else `vocab.json` and `merges.txt`, and the optional files.

    Raises:
        TokenizerError: the files are missing or invalid, or name a tokenizer class that cannot be
            read from them. The error names the file.
    """
    path = os.path.join(folder, TOKENIZER_FILE)
    if not os.path.isfile(path):
        path = os.path.join(folder, VOCABULARY_FILE)
        if not os.path.isfile(path) or not os.path.isfile(os.path.join(folder, MERGES_FILE)):
            raise TokenizerError(
                "has no tokenizer: add tokenizer.json, or vocab.json and merges.txt", file=folder
            )
    settings = read_optional(folder, TOKENIZER_CONFIG_FILE)
    tokenizer_class = class_name(folder, settings)
    try:
        rust = _read(path, tokenizer_class, settings, folder)
    except (TokenizerError, MemoryError):
        raise
    except BaseException as error:
        # For invalid files the package raises a bare `Exception` or panics.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"is not a valid tokenizer ({error})", file=path) from error
    rust.no_truncation()
    rust.no_padding()
    return Pretrained(rust, bool(settings.get("split_special_tokens")))


def is_plain(rust: "RustTokenizer") -> bool:
    """Whether a tokenizer uses only features of `GPT2Tokenizer`."""
    from tokenizers import decoders, models, pre_tokenizers

    model, pre_tokenizer = rust.model, rust.pre_tokenizer
    return (
        rust.normalizer is None
        and isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
        and pre_tokenizer.use_regex
        and isinstance(rust.decoder, decoders.ByteLevel)
        and isinstance(model, models.BPE)
        and not (model.unk_token or model.ignore_merges or model.byte_fallback)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix)
    )


def _read(
    path: str, tokenizer_class: str | None, settings: dict[str, Any], folder: str
) -> "RustTokenizer":
    from tokenizers import Tokenizer as RustTokenizer  # 25 ms
    from tokenizers import decoders, models

    is_single_file = os.path.basename(path) == TOKENIZER_FILE
    file_tokens: dict[int, AddedToken] = {}
    if is_single_file:
        rust = RustTokenizer.from_file(path)
        file_tokens = rust.get_added_tokens_decoder()
        # If no class is named, `transformers` takes the first way for every file and drops a
        # normalizer that the tokenizer had in training. Here the file is then used unchanged.
        is_gpt2 = tokenizer_class in GPT2_CLASSES or (tokenizer_class is None and is_plain(rust))
    else:
        if tokenizer_class not in (None, *GPT2_CLASSES, *_GENERIC_CLASSES):
            raise TokenizerError(
                f"tokenizer_class {tokenizer_class!r} cannot be read from {VOCABULARY_FILE}:"
                f" save the tokenizer as {TOKENIZER_FILE}",
                file=os.path.join(folder, TOKENIZER_CONFIG_FILE),
            )
        merges = os.path.join(folder, MERGES_FILE)
        try:
            rust = RustTokenizer(models.BPE.from_file(path, merges))
        except Exception as error:
            raise TokenizerError(f"is not a valid tokenizer ({error})", file=merges) from error
        is_gpt2 = True
    if not isinstance(rust.model, models.BPE):
        raise TokenizerError(f"is {type(rust.model).__name__}, not byte-level BPE", file=path)
    rust.model.dropout = None
    if is_gpt2:
        add_prefix_space = settings.get("add_prefix_space", False)
        if type(add_prefix_space) is not bool:
            raise TokenizerError(
                f"add_prefix_space is {add_prefix_space!r}, not true or false",
                file=os.path.join(folder, TOKENIZER_CONFIG_FILE),
            )
        rust = _as_gpt2(rust, add_prefix_space)
    elif not isinstance(rust.decoder, decoders.ByteLevel):
        raise TokenizerError(
            f"is BPE with {type(rust.decoder).__name__} decoder, not byte-level BPE", file=path
        )
    special = SpecialTokens(folder, settings, file_tokens, is_gpt2)
    special.add_to(rust)
    if not is_single_file:
        special.check_ids(rust)
        special.set_post_processor(rust)
    return rust


def _as_gpt2(read: "RustTokenizer", add_prefix_space: bool) -> "RustTokenizer":
    """Rebuild a tokenizer as `GPT2Tokenizer` does, without added tokens."""
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import decoders, pre_tokenizers

    model: Any = read.model
    model.unk_token = None
    model.fuse_unk = model.ignore_merges = model.byte_fallback = False
    rust = RustTokenizer(model)
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    rust.decoder = decoders.ByteLevel()
    if read.post_processor is not None:
        rust.post_processor = read.post_processor
    return rust


def class_name(folder: str, settings: dict[str, Any]) -> str | None:
    """The tokenizer class named in the files without the suffix `Fast`, or None."""
    name = settings.get("tokenizer_class") or read_optional(folder, CONFIG_FILE).get(
        "tokenizer_class"
    )
    return name.removesuffix("Fast") if isinstance(name, str) and name else None
