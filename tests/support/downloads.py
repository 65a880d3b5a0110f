"""Downloads without progress display, and the files that they leave."""

import hashlib
from pathlib import Path

from gpt2core.files.manifest import FileDigest, manifest_bytes
from gpt2core.files.names import MANIFEST_FILE
from handler.store.download import Published, to_directory

WEIGHTS = "model.safetensors"


class Silent:
    """A progress display without output."""

    interval = 1.0

    def __init__(self, uri: str) -> None:
        pass

    def show(self, state: object) -> None:
        pass

    def close(self, state: object, finished: bool) -> None:
        pass


def download(uri: str, root: Path, pin: str | None = None) -> Published[None]:
    return to_directory(uri, str(root), pin=pin, show=Silent)


def same_files(found: str, model_dir: Path) -> bool:
    names = {path.name for path in model_dir.iterdir()}
    return {path.name for path in Path(found).iterdir()} == names | {MANIFEST_FILE} and all(
        (Path(found) / name).read_bytes() == (model_dir / name).read_bytes() for name in names
    )


def leftovers(root: Path) -> list[str]:
    """Names in `root` other than those of published revisions."""
    return sorted(path.name for path in root.iterdir() if path.name not in ("revisions", "CURRENT"))


def manifest_of(folder: Path) -> bytes:
    """A manifest for a raw model directory, as users create it."""
    files = {
        path.name: FileDigest(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
    }
    return manifest_bytes(files, "tests")
