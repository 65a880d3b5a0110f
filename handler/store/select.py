"""Selects the model: the volume, else a verified copy in the cache, else a download from its URI.

If a configured model is not available, that is an error: the demo model never replaces it. A volume
or a cached copy that cannot be used is reported, and then the URI is tried, if there is one.
"""

import os
from collections.abc import Callable

from gpt2core.errors import GPT2Error, ModelError
from gpt2core.files.names import DEMO_DIR
from gpt2core.startup.slim_typing import Literal, NamedTuple, TypeVar
from handler.errors import BadRequest, ModelUnavailable
from handler.settings import DEMO_URI, Settings
from handler.store.revisions import resolve, verify

Origin = Literal["volume", "cache", "s3", "hub", "demo"]
_ORIGINS: dict[str, Origin] = {"s3": "s3", "hf": "hub"}
Opened = TypeVar("Opened")


class ModelSource(NamedTuple):
    """A model directory that was opened."""

    path: str
    name: str
    """The model's name in replies."""
    origin: Origin


def open_model(
    settings: Settings,
    opener: Callable[[str], Opened],
    report: Callable[[GPT2Error], None],
    deadline: float | None = None,
) -> tuple[ModelSource, Opened]:
    """Find and open the configured model; returns its source and the result of `opener`.

    If `opener` raises `ModelError` for a directory, the error is passed to `report` and the next
    source is tried. `deadline` is in `time.monotonic()` seconds.

    Raises:
        ModelUnavailable, ModelError: no source has a model that can be opened.
    """
    uri = settings.model_uri
    is_demo = uri in (None, DEMO_URI)
    volume_error: GPT2Error | None = None
    try:
        if volume := _usable(settings.model_dir, settings.model_sha256):
            source = ModelSource(volume, _name(settings.model_dir, volume), "volume")
            return source, opener(volume)
    except (ModelUnavailable, ModelError) as error:
        if is_demo and (uri is None or settings.model_dir_named):
            raise
        volume_error = error
        report(error)
    if is_demo:
        if settings.model_dir_named:
            raise ModelUnavailable(
                f"GPT2_MODEL_DIR {settings.model_dir!r} has no model: put config.json and"
                " model.safetensors there, or set GPT2_MODEL_URI to s3://… or hf://…",
                param="GPT2_MODEL_DIR",
            )
        if not _usable(DEMO_DIR, settings.model_sha256):
            raise ModelUnavailable(
                f"the demo model is missing from {DEMO_DIR!r}: install it, or set GPT2_MODEL_DIR or"
                " GPT2_MODEL_URI"
            )
        return ModelSource(DEMO_DIR, DEMO_URI, "demo"), opener(DEMO_DIR)
    try:
        return _remote(str(uri), settings, opener, report, deadline)
    except ModelUnavailable as error:
        if not volume_error:
            raise
        # The operator needs both reasons.
        message = f"{error.message}; the volume failed too: {volume_error.message}"
        raise type(error)(message, param=error.param) from None


def name_of(settings: Settings) -> str:
    """The model's name in replies, as far as it is known without opening or downloading it.

    Raises:
        ModelUnavailable: the volume's `CURRENT` is invalid.
    """
    volume = resolve(settings.model_dir)
    return _name(settings.model_dir, volume) if volume else settings.model_uri or DEMO_URI


def populate(settings: Settings, deadline: float | None = None) -> tuple[ModelSource, int, bool]:
    """Download the model to the volume; returns its source, size in bytes, and whether it is new.

    Raises:
        BadRequest: there is no URI to download from.
        ModelUnavailable: the download failed; the volume is unchanged.
    """
    uri = settings.model_uri
    if uri is None or uri == DEMO_URI:
        raise BadRequest(
            "no model to populate the volume with: set GPT2_MODEL_URI to s3://… or hf://…",
            param="GPT2_MODEL_URI",
        )
    root = settings.model_dir
    if not os.path.isdir(root):
        raise ModelUnavailable(
            f"GPT2_MODEL_DIR {root!r} is not a directory: mount a volume there",
            param="GPT2_MODEL_DIR",
        )
    from handler.store.download import to_directory

    _set_hub_home(settings)
    done = to_directory(uri, root, pin=settings.model_sha256, deadline=deadline)
    origin: Origin = _ORIGINS[uri[:2]] if done.fetched else "volume"
    return ModelSource(done.path, _name(root, done.path), origin), done.size, done.fetched


def cache_path(settings: Settings, uri: str) -> str:
    """The directory of a URI below `GPT2_CACHE_DIR`; its name is readable and unique."""
    safe = "".join(c if c.isalnum() or c in "-._" else f"%{ord(c):02X}" for c in uri)
    return os.path.join(settings.cache_dir, "models", safe)


def _remote(
    uri: str,
    settings: Settings,
    opener: Callable[[str], Opened],
    report: Callable[[GPT2Error], None],
    deadline: float | None,
) -> tuple[ModelSource, Opened]:
    root, pin = cache_path(settings, uri), settings.model_sha256
    cached = damaged = None
    try:
        cached = _usable(root, pin)
        if cached:
            return ModelSource(cached, uri, "cache"), opener(cached)
    except ModelUnavailable as error:
        report(error)
    except ModelError as error:  # it was valid when it was downloaded, but does not open now
        from handler.store.publish import is_damaged

        if not cached or not is_damaged(cached):  # another cause, such as too little memory
            raise
        report(error)
        damaged = cached
    from handler.store.download import to_directory  # imported only if needed

    _set_hub_home(settings)
    done = to_directory(uri, root, opener, pin=pin, deadline=deadline, damaged=damaged)
    # Not fetched: another process has published it in the meantime.
    return ModelSource(done.path, uri, _ORIGINS[uri[:2]] if done.fetched else "cache"), done.opened


def _usable(root: str, pin: str | None) -> str | None:
    """The model directory at `root`, checked as far as time permits; None if there is none."""
    found = resolve(root)
    if found:
        verify(found, pin)
    return found


def _name(volume: str, found: str) -> str:
    name = os.path.basename(os.path.normpath(volume))
    name = name if found == volume else f"{name}@{os.path.basename(found)[:12]}"
    return name.encode("utf-8", "replace").decode()


def _set_hub_home(settings: Settings) -> None:
    """Set HF_HOME if the home directory is read-only, as in Lambda.

    Elsewhere the Hub's client keeps its own home, with its token and cached models.
    """
    writable = os.access(os.path.expanduser("~"), os.W_OK)
    if "AWS_LAMBDA_FUNCTION_NAME" in os.environ or not writable:
        os.environ.setdefault("HF_HOME", os.path.join(settings.cache_dir, "huggingface"))
