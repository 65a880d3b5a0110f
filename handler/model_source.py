"""Where the model directory comes from: the volume, else the cache, else the URI.

A volume or a cache holds either a model directory itself or `revisions/<digest>/` directories and
a file `CURRENT` that names one of them. Whoever publishes a revision replaces `CURRENT` by rename,
so a process that has resolved it once keeps a whole model.
"""

import os
from typing import Literal, NamedTuple

from handler.errors import ModelUnavailable
from handler.settings import DEMO_URI, Settings

DEMO_DIR = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "models", "demo"
)


class ModelSource(NamedTuple):
    """A model directory that can be opened."""

    path: str
    name: str
    """What replies call the model."""
    origin: Literal["volume", "cache", "demo"]


def locate(settings: Settings) -> ModelSource:
    """Find the model that the settings name.

    Raises:
        ModelUnavailable: what was named cannot be had; the demo never stands in for it.
    """
    source = _find(settings)
    if settings.model_sha256:
        _check_digest(os.path.join(source.path, "model.safetensors"), settings.model_sha256)
    return source


def cache_path(settings: Settings, uri: str) -> str:
    """The directory below `GPT2_CACHE_DIR` that belongs to one URI: a readable, unique name."""
    safe = "".join(c if c.isalnum() or c in "-._" else f"%{ord(c):02X}" for c in uri)
    return os.path.join(settings.cache_dir, "models", safe)


def _find(settings: Settings) -> ModelSource:
    uri = settings.model_uri
    volume = _resolve(settings.model_dir)
    if volume:
        return ModelSource(volume, _name(settings.model_dir, volume), "volume")
    if uri is None and settings.model_dir_named:
        raise ModelUnavailable(
            f"GPT2_MODEL_DIR {settings.model_dir!r} holds no model: put config.json and"
            " model.safetensors there, or set GPT2_MODEL_URI",
            param="GPT2_MODEL_DIR",
        )
    if uri is None or uri == DEMO_URI:
        if not _resolve(DEMO_DIR):
            raise ModelUnavailable(
                f"the demo model is not at {DEMO_DIR!r}: install it or name a model"
            )
        return ModelSource(DEMO_DIR, DEMO_URI, "demo")
    cached = _resolve(cache_path(settings, uri))
    if cached:
        return ModelSource(cached, uri, "cache")
    raise ModelUnavailable(
        f"GPT2_MODEL_URI {uri!r} is not in the cache and this version cannot download:"
        " put the model on a volume and set GPT2_MODEL_DIR",
        param="GPT2_MODEL_URI",
    )


def _resolve(path: str) -> str | None:
    """The model directory at `path`: what `CURRENT` names, or `path` itself; None for neither.

    Raises:
        ModelUnavailable: `CURRENT` is there and names no revision beside it.
    """
    try:
        with open(os.path.join(path, "CURRENT"), encoding="utf-8") as file:
            revision = file.read(256).strip()
    except (FileNotFoundError, NotADirectoryError):
        return path if os.path.exists(os.path.join(path, "config.json")) else None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelUnavailable(
            f"{path}: CURRENT cannot be read ({type(error).__name__})"
        ) from error
    found = os.path.join(path, "revisions", revision)
    if (
        revision in ("", ".", "..")
        or "/" in revision
        or "\0" in revision
        or not os.path.isdir(found)
    ):
        raise ModelUnavailable(f"{path}: CURRENT names {revision!a}, which is no revision there")
    return found


def _name(volume: str, found: str) -> str:
    name = os.path.basename(os.path.normpath(volume))
    name = name if found == volume else f"{name}@{os.path.basename(found)[:12]}"
    return name.encode("utf-8", "replace").decode()


def _check_digest(weights: str, expected: str) -> None:
    """Hash the weights file: a pinned digest is worth one read of the whole file per process."""
    import hashlib

    try:
        with open(weights, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnavailable(
            f"{weights}: cannot be checked against GPT2_MODEL_SHA256 ({error.strerror})",
            param="GPT2_MODEL_SHA256",
        ) from error
    if found != expected:
        raise ModelUnavailable(
            f"{weights} has SHA-256 {found}, GPT2_MODEL_SHA256 asks for {expected}",
            param="GPT2_MODEL_SHA256",
        )
