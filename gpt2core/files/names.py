"""File names in a model directory, and the layout of a directory of published models.

The names of raw files are Hugging Face's. Published models are `revisions/<digest>/` directories
beside a file `CURRENT` that names one of them. A writer replaces `CURRENT` atomically, and
revisions do not change, so a process that has followed it keeps a complete model.
"""

import os
from collections.abc import Container

from gpt2core.errors import ModelError

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
CURRENT = "CURRENT"
REVISIONS = "revisions"
# Format name in the metadata of a packed file. The number changes with the layout.
PACKED_FORMAT = "gpt2-packed-3"

_PACKAGE = os.path.abspath(__file__).rsplit(os.sep, 2)[0]
# The demo model: `pip install` puts it into the package; in a checkout it stands beside it.
DEMO_DIR = os.path.join(_PACKAGE, "demo")
if not os.path.isdir(DEMO_DIR):
    DEMO_DIR = os.path.join(os.path.dirname(_PACKAGE), "models", "demo")


def follow_current(root: str) -> str:
    """The revision that `CURRENT` in `root` names, or `root` itself if there is no such file.

    Raises:
        ModelError: `CURRENT` cannot be read or does not name an existing revision.
    """
    try:
        with open(os.path.join(root, CURRENT), encoding="utf-8") as file:
            revision = file.read(256).strip()
    except (FileNotFoundError, NotADirectoryError):
        return root
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"CURRENT cannot be read ({type(error).__name__})", file=root) from error
    found = os.path.join(root, REVISIONS, revision)
    is_name = revision not in ("", ".", "..") and "/" not in revision and "\0" not in revision
    if not is_name or not os.path.isdir(found):
        raise ModelError(
            f"CURRENT names {revision!a}, which is not in {REVISIONS}/: fetch the model again",
            file=root,
        )
    return found


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
