"""Selects the weights files of a model directory."""

import json
import os

from gpt2core.config import GPT2Config, parse_json, read_text
from gpt2core.errors import InvalidArgument, ModelError, PackedFormatError
from gpt2core.files.checkpoint import open_checkpoint
from gpt2core.files.names import (
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    PACKED_FILE,
    SINGLE_FILE,
)
from gpt2core.files.packed import PRECISIONS, Packed, open_packed
from gpt2core.files.safetensors import Tensor
from gpt2core.startup.slim_typing import Any


def open_directory(path: str, precision: str) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Open the packed file if it is current, else the raw files.

    A packed file is outdated if `config.json` describes another network, or if its raw files are
    in the same directory and have changed.

    Raises:
        InvalidArgument: the directory does not have this precision.
        ModelError: `ConfigError` or `CheckpointError`; names the file and the field or tensor.
    """
    if precision != "auto" and precision not in PRECISIONS:
        raise InvalidArgument(
            f"precision {precision!r} is not one of auto, {', '.join(PRECISIONS)}",
            param="precision",
        )
    file = os.path.join(path, PACKED_FILE)
    has_raw = has_raw_weights(path)
    held = "f32"
    packed = None
    if os.path.exists(file):
        try:
            packed = open_packed(file)
        except PackedFormatError as error:
            if not has_raw or precision not in ("auto", "f32"):
                raise
            from warnings import warn

            warn(f"{error}; using the raw files", stacklevel=3)
    if not packed:
        check_has_model(path)
    else:
        held = packed.precision
        config = _config(path, packed, has_raw)
        is_same = config.is_same_network(packed.config)
        if not is_same and not has_raw:
            raise ModelError(
                "was packed for another network than config.json describes: pack the model again,"
                " or restore config.json",
                file=file,
            )
        is_current = is_same and not (has_raw and _sources_changed(path, packed.metadata))
        if is_current and precision in ("auto", held):
            return config, packed.tensors
    if (has_raw or not packed) and precision in ("auto", "f32"):
        config = GPT2Config.from_file(os.path.join(path, CONFIG_FILE))
        return config, open_checkpoint(path, config)
    problem = f"has precision {held}, not {precision}"
    if held == precision:
        problem = f"was packed in {held} before its weights changed"
    raise InvalidArgument(f"{path} {problem}: pack the model again", param="precision")


def has_raw_weights(path: str) -> bool:
    """Whether a directory has weights in Hugging Face's layout."""
    return any(os.path.exists(os.path.join(path, name)) for name in (SINGLE_FILE, INDEX_FILE))


def check_has_model(path: str) -> None:
    """Check that a directory has `config.json` and raw weights.

    Raises:
        ModelError: names the missing file.
    """
    if not os.path.exists(os.path.join(path, CONFIG_FILE)):
        raise ModelError(f"is not a model directory: it has no {CONFIG_FILE}", file=path)
    if not has_raw_weights(path):
        raise ModelError(f"is not a model directory: it has no {SINGLE_FILE}", file=path)


def _config(path: str, packed: Packed, has_raw: bool) -> GPT2Config:
    """The configuration of a directory with a packed file, which has copies of the JSON files.

    Files in the directory take precedence over the copies; they are parsed only if they differ.
    """
    texts: dict[str, str | None] = {}
    recorded = {
        CONFIG_FILE: packed.metadata["config"],
        GENERATION_FILE: packed.metadata.get("generation_config"),
    }
    for name in recorded:
        file = os.path.join(path, name)
        if os.path.exists(file):
            texts[name] = read_text(file)
        else:  # next to raw files, a missing generation_config.json was removed on purpose
            removed = has_raw and name == GENERATION_FILE
            texts[name] = None if removed else recorded[name]
    if texts == recorded:
        return packed.config
    fields = [
        None if text is None else parse_json(text, os.path.join(path, name))
        for name, text in texts.items()
    ]
    return GPT2Config.from_dict(fields[0] or {}, os.path.join(path, CONFIG_FILE), fields[1])


def _sources_changed(path: str, metadata: dict[str, str]) -> bool:
    """Whether the raw weights next to a packed file have changed since it was packed.

    False if they are incomplete: they cannot replace the packed file.
    """
    try:
        samples: Any = json.loads(metadata.get("samples", ""))
    except (ValueError, RecursionError):
        return False  # not recorded
    from gpt2core.files.samples import is_as_recorded

    single = os.path.exists(os.path.join(path, SINGLE_FILE))
    if not isinstance(samples, dict) or (SINGLE_FILE if single else INDEX_FILE) not in samples:
        return True
    try:
        return not all(
            name == os.path.basename(name) and is_as_recorded(os.path.join(path, name), sample)
            for name, sample in samples.items()
        )
    except OSError:
        return False
