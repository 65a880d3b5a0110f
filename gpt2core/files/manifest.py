"""`gpt2.manifest.json`: names, sizes and SHA-256 digests of the files of a model directory.

    {"version": 1, "source": …, "precision": …, "files": {NAME: {"size": BYTES, "sha256": HEX}, …}}

Packed models and downloaded or published raw models have one. The SHA-256 of the manifest itself
identifies the directory: it is the name of a revision, and GPT2_MODEL_SHA256 can pin it.
"""

import json
import os
import stat
from collections.abc import Mapping

from gpt2core.errors import ModelError
from gpt2core.files.names import MANIFEST_FILE, PACKED_FILE, SINGLE_FILE, TABLES_FILE
from gpt2core.startup.slim_typing import Any, NamedTuple

VERSION = 1
MAX_BYTES = 1 << 20
# A directory with only this weights file can be pinned by the digest of the file.
WEIGHTS_FILES = (PACKED_FILE, SINGLE_FILE)
_NAME_CHARACTERS = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
)  # fmt: skip


class ManifestError(ModelError):
    """A manifest is invalid, or the directory does not match its manifest."""


class FileDigest(NamedTuple):
    """Size in bytes and lower-case hexadecimal SHA-256 of one file."""

    size: int
    sha256: str


class Manifest(NamedTuple):
    """A parsed manifest. `raw` is its bytes."""

    files: dict[str, FileDigest]
    source: Any
    raw: bytes

    @property
    def size(self) -> int:
        """Total size of the files in bytes."""
        return sum(file.size for file in self.files.values())

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest itself, as `sha256sum gpt2.manifest.json` prints it."""
        from hashlib import sha256  # 1 ms, and a cold start needs it only for a pinned digest

        return sha256(self.raw).hexdigest()

    def is_pinned_by(self, digest: str) -> bool:
        """Whether `digest` is that of the manifest, or of its only weights file."""
        weights = [n for n in self.files if n.endswith(".safetensors") and n != TABLES_FILE]
        if len(weights) == 1 and weights[0] in WEIGHTS_FILES:
            return digest in (self.files[weights[0]].sha256, self.digest)
        return digest == self.digest


def is_plain_name(name: object) -> bool:
    """Whether an untrusted name is safe as a file name in a model directory."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 128
        and name[0] not in ".-"
        and _NAME_CHARACTERS.issuperset(name)
        and name != MANIFEST_FILE
    )


def manifest_bytes(
    files: Mapping[str, FileDigest], source: object, precision: str | None = None
) -> bytes:
    """Serialize a manifest; deterministic."""
    fields = {
        "version": VERSION,
        "source": source,
        "precision": precision,
        "files": {name: files[name]._asdict() for name in sorted(files)},
    }
    return json.dumps(fields, indent=1).encode() + b"\n"


def parse_manifest(raw: bytes, file: str = MANIFEST_FILE) -> Manifest:
    """Parse and validate a manifest. `file` is its name in error messages.

    Raises:
        ManifestError: it is not a manifest of this version, or a file name is not safe.
    """
    if len(raw) > MAX_BYTES:
        raise ManifestError(f"has {len(raw)} bytes; the limit is {MAX_BYTES}", file=file)
    try:
        fields = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"is not valid JSON in UTF-8 ({error})", file=file) from error
    if not isinstance(fields, dict):
        raise ManifestError(f"is a JSON {type(fields).__name__}, not an object", file=file)
    if fields.get("version") != VERSION:
        raise ManifestError(
            f"has version {ascii(fields.get('version'))[:40]}, not {VERSION}: pack or download the"
            " model again",
            file=file,
        )
    entries = fields.get("files")
    if not isinstance(entries, dict) or not entries:
        raise ManifestError("files is missing or empty", file=file)
    files = {}
    for name, entry in entries.items():
        if not is_plain_name(name):
            raise ManifestError(f"{ascii(name)[:80]} is not a plain file name", file=file)
        entry = entry if isinstance(entry, dict) else {}
        size, sha256 = entry.get("size"), str(entry.get("sha256"))
        if type(size) is not int or not 0 <= size < 1 << 63 or not _is_sha256(sha256):
            raise ManifestError(f"{name}: size or sha256 is missing or invalid", file=file)
        files[name] = FileDigest(size, sha256)
    return Manifest(files, fields.get("source"), raw)


def read_manifest(model_dir: str) -> Manifest | None:
    """The manifest of a model directory, or None if it has none.

    Raises:
        ManifestError: it cannot be read or is invalid.
    """
    path = os.path.join(model_dir, MANIFEST_FILE)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would block
            raise ManifestError("is not a regular file", file=path)
        with open(path, "rb") as file:
            return parse_manifest(file.read(MAX_BYTES + 1), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ManifestError(f"cannot be read ({error.strerror})", file=path) from error


def check_sizes(model_dir: str, manifest: Manifest) -> None:
    """Check that every file exists, is regular and has the size in the manifest.

    A cold start has no time for more: the digests were verified when the directory was written.

    Raises:
        ManifestError: names the first file that does not match.
    """
    for name, entry in manifest.files.items():
        path = os.path.join(model_dir, name)
        try:
            found = os.lstat(path)
        except OSError as error:
            raise ManifestError(
                f"is listed in {MANIFEST_FILE} but unavailable ({error.strerror})", file=path
            ) from error
        if not stat.S_ISREG(found.st_mode):
            raise ManifestError(
                f"is listed in {MANIFEST_FILE} but is not a regular file", file=path
            )
        if found.st_size != entry.size:
            raise ManifestError(
                f"has {found.st_size} bytes, not {entry.size} as in {MANIFEST_FILE}: copy or"
                " download the directory again",
                file=path,
            )


def _is_sha256(value: str) -> bool:
    return len(value) == 64 and set(value) <= set("0123456789abcdef")
