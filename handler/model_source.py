"""Where the model comes from: the volume, else a verified copy in the cache, else its URI.

What was named and cannot be had is an error, never quietly the demo. A volume or a copy that is
there and cannot be used is reported, and the URI is asked where there is one.
"""

import os
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from gpt2core.errors import GPT2Error
from handler.errors import BadRequest, ModelUnavailable
from handler.revisions import resolve, verify
from handler.settings import DEMO_URI, MEMORY, Settings

DEMO_DIR = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "models", "demo"
)
Origin = Literal["volume", "cache", "s3", "hub", "demo"]


class ModelSource(NamedTuple):
    """A model directory that can be opened."""

    path: str
    name: str
    """What replies call the model."""
    origin: Origin


def candidates(
    settings: Settings, report: Callable[[GPT2Error], None], deadline: float | None = None
) -> Iterator[ModelSource]:
    """The model directories that the settings name, the preferred one first.

    A later one is looked for, or downloaded, only when it is asked for: because the one before it
    turned out not to be usable. `report` hears of those that were found unusable here. `deadline`
    is in `time.monotonic()` seconds.

    Raises:
        ModelUnavailable: there is none, or no further one.
    """
    uri = settings.model_uri
    broken: GPT2Error | None = None
    try:
        volume = _usable(settings.model_dir, settings.model_sha256)
        if volume:
            yield ModelSource(volume, _name(settings.model_dir, volume), "volume")
            if uri is None:
                return
    except ModelUnavailable as error:
        if uri is None:
            raise
        broken = error
        report(error)
    if uri is None and settings.model_dir_named:
        raise ModelUnavailable(
            f"GPT2_MODEL_DIR {settings.model_dir!r} holds no model: put config.json and"
            " model.safetensors there, or set GPT2_MODEL_URI",
            param="GPT2_MODEL_DIR",
        )
    if uri is None or uri == DEMO_URI:
        if not _usable(DEMO_DIR, settings.model_sha256):
            raise ModelUnavailable(
                f"the demo model is not at {DEMO_DIR!r}: install it or name a model"
            )
        yield ModelSource(DEMO_DIR, DEMO_URI, "demo")
        return
    try:
        yield from _remote(uri, settings, report, deadline)
    except ModelUnavailable as error:
        if not broken:
            raise
        # Both are news to whoever has to mend it.
        message = f"{error.message}; and the volume: {broken.message}"
        raise type(error)(message, param=error.param) from None


def populate(settings: Settings, deadline: float | None = None) -> tuple[ModelSource, int, bool]:
    """Fill the volume from the URI: the model, its bytes, and whether anything had to be fetched.

    Raises:
        BadRequest: the settings name no URI to download from.
        ModelUnavailable: the download failed; the volume is as it was.
    """
    uri = settings.model_uri
    if uri is None or uri == DEMO_URI:
        raise BadRequest(
            "there is nothing to populate the volume from: set GPT2_MODEL_URI to s3://… or hf://…",
            param="GPT2_MODEL_URI",
        )
    root = settings.model_dir
    if not os.path.isdir(root):
        raise ModelUnavailable(
            f"GPT2_MODEL_DIR {root!r} is no directory: attach a volume there",
            param="GPT2_MODEL_DIR",
        )
    from handler import download

    _set_hub_home(settings)
    done = download.to_directory(uri, root, pin=settings.model_sha256, deadline=deadline)
    origin: Origin = _origin(uri) if done.fetched else "volume"
    return ModelSource(done.path, _name(root, done.path), origin), done.size, done.fetched


def cache_path(settings: Settings, uri: str) -> str:
    """The directory below `GPT2_CACHE_DIR` that belongs to one URI: a readable, unique name."""
    safe = "".join(c if c.isalnum() or c in "-._" else f"%{ord(c):02X}" for c in uri)
    return os.path.join(settings.cache_dir, "models", safe)


def _remote(
    uri: str, settings: Settings, report: Callable[[GPT2Error], None], deadline: float | None
) -> Iterator[ModelSource]:
    pin = settings.model_sha256
    if settings.cache_dir == MEMORY:
        from handler import download

        kept = download.to_memory(uri, pin=pin, deadline=deadline)
        yield ModelSource(kept.path, uri, _origin(uri))
        return
    root = cache_path(settings, uri)
    try:
        cached = _usable(root, pin)
    except ModelUnavailable as error:
        cached = None
        report(error)
    if cached:
        yield ModelSource(cached, uri, "cache")
        # Asked for more: it was verified when it came, and does not open now.
        from handler.staging import discard, is_damaged

        if not is_damaged(cached):  # mended by another process, or this one lacks memory
            yield ModelSource(cached, uri, "cache")
            return
        discard(root, cached)
    from handler import download  # threads, hashes, a client: only here

    _set_hub_home(settings)
    fresh = download.to_directory(uri, root, pin=pin, deadline=deadline)
    # Unchanged: another process was quicker.
    yield ModelSource(fresh.path, uri, _origin(uri) if fresh.fetched else "cache")


def _usable(root: str, pin: str | None) -> str | None:
    """The model directory at `root`, verified as far as a cold start can; None if there is none."""
    found = resolve(root)
    if found:
        verify(found, pin)
    return found


def _origin(uri: str) -> Origin:
    return "s3" if uri.startswith("s3://") else "hub"


def _name(volume: str, found: str) -> str:
    name = os.path.basename(os.path.normpath(volume))
    name = name if found == volume else f"{name}@{os.path.basename(found)[:12]}"
    return name.encode("utf-8", "replace").decode()


def _set_hub_home(settings: Settings) -> None:
    """Give the Hub's client a home where there is none: Lambda's is read-only.

    Elsewhere it keeps its own, with the token and the models that are there.
    """
    writable = os.access(os.path.expanduser("~"), os.W_OK)
    if settings.cache_dir != MEMORY and ("AWS_LAMBDA_FUNCTION_NAME" in os.environ or not writable):
        os.environ.setdefault("HF_HOME", os.path.join(settings.cache_dir, "huggingface"))
