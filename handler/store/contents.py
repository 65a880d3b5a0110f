"""Selects the files of a model at its source, before they are fetched."""

import json
from collections.abc import Callable, Iterable

from gpt2core.errors import ModelError
from gpt2core.files.manifest import Manifest, is_plain_name, parse_manifest
from gpt2core.files.names import (
    CONFIG_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    RAW_FILES,
    SINGLE_FILE,
    config_files,
    tokenizer_files,
)
from handler.errors import DigestMismatch, ModelNotFound
from handler.store.transfer import RemoteFile

_NAMES = (MANIFEST_FILE, *RAW_FILES)
_NOT_READ = (
    "pytorch_model.bin",
    "tf_model.h5",
    "flax_model.msgpack",
    "pytorch_model.bin.index.json",
)

Find = Callable[[Iterable[str]], dict[str, RemoteFile]]
Read = Callable[[RemoteFile], bytes]


def files_of(
    uri: str, find: Find, read: Read, pin: str | None
) -> tuple[list[RemoteFile], Manifest | None]:
    """The files in the source's manifest, or else those of a raw model; and the manifest or None.

    `find` looks up files by name, `read` fetches a small file.

    Raises:
        ModelNotFound: a file is missing, or the manifest or the shard index is invalid.
        DigestMismatch: the model is not the pinned one.
    """
    found = find(_NAMES)
    if MANIFEST_FILE in found:
        try:
            manifest = parse_manifest(read(found[MANIFEST_FILE]), MANIFEST_FILE)
        except ModelError as error:
            raise ModelNotFound(f"{uri}: {error.message}") from None
        check_pin(uri, manifest, pin)
        return _listed(uri, find(manifest.files), manifest), manifest
    if CONFIG_FILE not in found:
        raise ModelNotFound(f"{uri} has no {CONFIG_FILE}: is it a model directory?")
    names = config_files(found) + tokenizer_files(found)
    if SINGLE_FILE in found:
        names.append(SINGLE_FILE)
        expected = found[SINGLE_FILE].digests.get("sha256")
        if pin and expected and expected != pin:
            raise _not_pinned(uri, f"{SINGLE_FILE} has the SHA-256 {expected}", pin)
    elif INDEX_FILE in found:
        shards = _shards(uri, read(found[INDEX_FILE]))
        found |= find(shards)
        for shard in shards:
            if shard not in found:
                raise ModelNotFound(f"{uri}: {shard} is listed in {INDEX_FILE} but missing")
        names += [INDEX_FILE, *shards]
    else:
        others = ", ".join(find(_NOT_READ))
        hint = f"; {others} is not supported: convert it to safetensors" if others else ""
        raise ModelNotFound(f"{uri} has neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")
    return [found[name] for name in names], None


def check_pin(uri: str, manifest: Manifest, pin: str | None) -> None:
    """Check a manifest against the pinned digest, if there is one.

    Raises:
        DigestMismatch: it does not match.
    """
    if pin and not manifest.is_pinned_by(pin):
        raise _not_pinned(uri, f"the manifest has the SHA-256 {manifest.digest}", pin)


def _listed(uri: str, found: dict[str, RemoteFile], manifest: Manifest) -> list[RemoteFile]:
    """The files of a manifest with their versions at the source."""
    files = []
    for name, entry in manifest.files.items():
        if name not in found:
            raise ModelNotFound(f"{uri}: {name} is listed in {MANIFEST_FILE} but missing")
        if found[name].size != entry.size:
            raise DigestMismatch(
                f"{uri}: {name} has {found[name].size} bytes, not {entry.size} as in"
                f" {MANIFEST_FILE}: upload the whole directory again"
            )
        files.append(found[name]._replace(digests={"sha256": entry.sha256}))
    return files


def _shards(uri: str, index: bytes) -> list[str]:
    """The shards that `model.safetensors.index.json` lists, without duplicates."""
    try:
        names = list(dict.fromkeys(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelNotFound(f"{uri}: {INDEX_FILE} is not a valid shard index") from None
    for name in names or [None]:
        if not is_plain_name(name) or not str(name).endswith(".safetensors"):
            shown = ascii(name)[:80]
            raise ModelNotFound(
                f"{uri}: {INDEX_FILE} lists {shown}, which is not a safetensors file name"
            )
    return names


def _not_pinned(uri: str, found: str, pin: str) -> DigestMismatch:
    return DigestMismatch(
        f"{uri}: {found}, not {pin} as GPT2_MODEL_SHA256 requires", param="GPT2_MODEL_SHA256"
    )
