"""Reading a published model: `revisions/<digest>/` directories and a file `CURRENT` naming one.

A volume or a cache holds that, or simply a model directory itself. Whoever publishes a revision
replaces `CURRENT` by rename, so a process that has resolved it once keeps a whole model.
"""

import os

from gpt2core.manifest import ManifestError, check_sizes, read_manifest
from handler.errors import ModelUnavailable

CURRENT = "CURRENT"
REVISIONS = "revisions"


def resolve(root: str) -> str | None:
    """The model directory at `root`: what `CURRENT` names, or `root` itself; None for neither.

    Raises:
        ModelUnavailable: `CURRENT` is there and names no revision beside it.
    """
    try:
        with open(os.path.join(root, CURRENT), encoding="utf-8") as file:
            revision = file.read(256).strip()
    except (FileNotFoundError, NotADirectoryError):
        return root if os.path.exists(os.path.join(root, "config.json")) else None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelUnavailable(
            f"{root}: CURRENT cannot be read ({type(error).__name__})"
        ) from error
    found = os.path.join(root, REVISIONS, revision)
    if (
        revision in ("", ".", "..")
        or "/" in revision
        or "\0" in revision
        or not os.path.isdir(found)
    ):
        raise ModelUnavailable(f"{root}: CURRENT names {revision!a}, which is no revision there")
    return found


def verify(model_dir: str, pin: str | None = None) -> None:
    """Hold a model directory against its manifest's sizes and, if there is one, a pinned digest.

    Without a manifest nothing is known of the sizes, and a pin costs one read of the weights.

    Raises:
        ModelUnavailable: it is not what the manifest says or the pin asks for.
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
            f"{model_dir}: neither the manifest ({manifest.digest}) nor the weights it lists have"
            f" the SHA-256 that is pinned, {pin}",
            param="GPT2_MODEL_SHA256",
        )


def _check_weights(path: str, pin: str) -> None:
    """Hash a weights file: a pinned digest is worth one read of the whole file per process."""
    import hashlib

    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnavailable(
            f"{path}: cannot be checked against GPT2_MODEL_SHA256 ({error.strerror})",
            param="GPT2_MODEL_SHA256",
        ) from error
    if found != pin:
        raise ModelUnavailable(
            f"{path} has SHA-256 {found}, GPT2_MODEL_SHA256 asks for {pin}",
            param="GPT2_MODEL_SHA256",
        )
