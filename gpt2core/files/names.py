"""File names in a model directory. The names of raw files are Hugging Face's."""

import os
from collections.abc import Container

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.json"
# Read if there is no `TOKENIZER_FILE`.
VOCABULARY_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
# Optional, read with either of them.
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
# All files of a raw model except the shards that `INDEX_FILE` lists.
RAW_FILES = (CONFIG_FILE, GENERATION_FILE, SINGLE_FILE, INDEX_FILE, TOKENIZER_FILE,
             VOCABULARY_FILE, MERGES_FILE, TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE,
             ADDED_TOKENS_FILE)  # fmt: skip
PACKED_FILE = "packed.safetensors"
TABLES_FILE = "tokenizer.safetensors"
MANIFEST_FILE = "gpt2.manifest.json"
# Format name in the metadata of a packed file. The number changes with the layout.
PACKED_FORMAT = "gpt2-packed-3"

_PACKAGE = os.path.abspath(__file__).rsplit(os.sep, 2)[0]
# The demo model: `pip install` puts it into the package; in a checkout it stands beside it.
DEMO_DIR = os.path.join(_PACKAGE, "demo")
if not os.path.isdir(DEMO_DIR):
    DEMO_DIR = os.path.join(os.path.dirname(_PACKAGE), "models", "demo")


def config_files(found: Container[str]) -> list[str]:
    """The files in `found` that the configuration is read from."""
    return [name for name in (CONFIG_FILE, GENERATION_FILE) if name in found]


def tokenizer_files(found: Container[str]) -> list[str]:
    """The files in `found` that the tokenizer is read from; empty if there is no vocabulary."""
    if TOKENIZER_FILE in found:
        vocabulary = [TOKENIZER_FILE]
    elif VOCABULARY_FILE in found:
        vocabulary = [name for name in (VOCABULARY_FILE, MERGES_FILE) if name in found]
    else:
        return []
    optional = (TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE)
    return [*vocabulary, *(name for name in optional if name in found)]
