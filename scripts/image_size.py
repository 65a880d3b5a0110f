"""The size of an image, and the files that a cold start opens.

    python scripts/image_size.py IMAGE

Prints the compressed size (gzip, as in registries) of the layers above the base, by package, and
the files that are opened up to the first reply, with `strace` in the unpacked image (needs root
and strace). Needs Docker.
"""

import argparse
import gzip
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

OWN = 3  # layers that the Dockerfile adds: dependencies, kernels, code
MIN_LISTED_BYTES = 200_000
COMMAND = ["python3", "-S", "bootstrap.py", "invoke", "events/direct-generate.json"]
OPENED = re.compile(r'openat\([^"]*"([^"]+)"[^=]*= \d+')


class Part(NamedTuple):
    """The share of one package or directory in an image."""

    files: int
    size: int
    compressed: int
    """Bytes of all its files, concatenated and compressed with gzip."""


def main(image: str) -> None:
    layers = _layers(image)
    sizes = [len(gzip.compress(layer, 6, mtime=0)) for layer in layers]
    base, own = sum(sizes[:-OWN]), sum(sizes[-OWN:])
    print(f"base {base / 1e6:.1f} MB compressed, own layers {own / 1e6:.1f} MB\n")
    print("| part | files | MB | MB compressed |\n|---|---|---|---|")
    for name, part in _merge_small(parts(layers[-OWN:])).items():
        print(f"| {name} | {part.files} | {part.size / 1e6:.1f} | {part.compressed / 1e6:.1f} |")
    with tempfile.TemporaryDirectory() as folder:
        opened = _opened(image, Path(folder) / "root")
    if opened is None:
        print("\nfiles opened at start: not counted, needs root and strace")
        return
    total = sum(opened.values())
    ours = sum(size for path, size in opened.items() if path.startswith("/var/task"))
    print(f"\nthe first reply opens {len(opened)} files of {total / 1e6:.1f} MB,", end=" ")
    print(f"{ours / 1e6:.1f} MB of them in /var/task")


def own_layers(image: str, count: int = OWN) -> list[bytes]:
    """The uncompressed `count` layers of an image above its base, as tar archives."""
    return _layers(image)[-count:]


def parts(layers: list[bytes]) -> dict[str, Part]:
    """The parts of layers by top-level name in /var/task, largest first."""
    content: dict[str, bytearray] = {}
    counts: Counter[str] = Counter()
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file:
                    name = _part(member.name)
                    counts[name] += 1
                    content.setdefault(name, bytearray()).extend(file.read())
    found = {n: Part(counts[n], len(c), len(gzip.compress(c, 6))) for n, c in content.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1].compressed))


def _merge_small(found: dict[str, Part]) -> dict[str, Part]:
    """Combine the small parts to one."""
    large = {n: p for n, p in found.items() if p.compressed >= MIN_LISTED_BYTES}
    rest = [p for n, p in found.items() if n not in large]
    return large | {f"{len(rest)} others": Part(*map(sum, zip(*rest, strict=True)))}


def _layers(image: str) -> list[bytes]:
    """Uncompressed layers, those of the base first, without empty ones."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "image.tar"
        subprocess.run(["docker", "save", "-o", saved, image], check=True)
        with tarfile.open(saved) as archive:
            manifest = archive.extractfile("manifest.json")
            assert manifest
            names = json.load(manifest)[0]["Layers"]
            contents = [archive.extractfile(name) for name in names]
            return [file.read() for file in contents if file]


def _part(path: str) -> str:
    below = path.removeprefix("var/task/").split("/")
    return below[0].removesuffix(".libs").partition("-")[0]


def _opened(image: str, root: Path) -> dict[str, int] | None:
    """Sizes of the files that are opened up to the first reply, by path; None without strace."""
    container = subprocess.run(
        ["docker", "create", image], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        root.mkdir()
        exported = subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE)
        subprocess.run(["tar", "-C", root, "-x"], stdin=exported.stdout, check=True)
        exported.wait()
        inside = "cd /var/task && exec " + " ".join(COMMAND)
        command = ["strace", "-f", "-e", "trace=openat,execve", "-o", root.parent / "trace"]
        command += ["chroot", root, "/bin/sh", "-c", inside]
        try:
            subprocess.run(command, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
    finally:
        subprocess.run(["docker", "rm", container], capture_output=True, check=True)
    found = {}
    trace = (root.parent / "trace").read_text()
    for name in OPENED.findall(trace[trace.index("bootstrap.py") :]):
        path = (root / "var/task" / name).resolve() if name[0] != "/" else root / name[1:]
        if path.is_file():
            found["/" + str(path.relative_to(root))] = path.stat().st_size
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", metavar="IMAGE")
    main(parser.parse_args().image)
