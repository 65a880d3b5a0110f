"""Resolves and checks the model of a volume or a cache: published models, or a model directory."""

import os

from gpt2core.errors import ModelError
from gpt2core.files.manifest import ManifestError, check_sizes, read_manifest
from gpt2core.files.names import CONFIG_FILE, follow_current
from handler.errors import ModelUnavailable


def resolve(root: str) -> str | None:
    """The model directory at `root`: the revision in `CURRENT`, or `root` itself, or None.

    Raises:
        ModelUnavailable: `CURRENT` does not name an existing revision.
    """
    try:
        found = follow_current(root)
    except ModelError as error:
        raise ModelUnavailable(error.message) from error
    if found == root and not os.path.exists(os.path.join(root, CONFIG_FILE)):
        return None
    return found


def verify(model_dir: str, pin: str | None = None) -> None:
    """Check a model directory against the sizes in its manifest and against a pinned digest.

    Without a manifest sizes are not checked, and a pin requires hashing the weights.

    Raises:
        ModelUnavailable: the directory does not match the manifest or the pin.
    """
    try:
        manifest = read_manifest(model_dir)
        if manifest:
            check_sizes(model_dir, manifest)
    except ManifestError as error:
        raise ModelUnavailable(error.message) from error
    if not pin:
        return
    if not manifest:
        _check_weights(os.path.join(model_dir, "model.safetensors"), pin)
    elif not manifest.is_pinned_by(pin):
        raise ModelUnavailable(
            f"{model_dir}: neither the manifest ({manifest.digest}) nor its weights file has the"
            f" SHA-256 {pin} that GPT2_MODEL_SHA256 requires",
            param="GPT2_MODEL_SHA256",
        )


def _check_weights(path: str, pin: str) -> None:
    """Hash a weights file and compare the digest; reads the whole file once per process."""
    import hashlib

    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnavailable(
            f"{path}: cannot be read to check GPT2_MODEL_SHA256 ({error.strerror})",
            param="GPT2_MODEL_SHA256",
        ) from error
    if found != pin:
        raise ModelUnavailable(
            f"{path} has the SHA-256 {found}, not {pin} as GPT2_MODEL_SHA256 requires",
            param="GPT2_MODEL_SHA256",
        )
