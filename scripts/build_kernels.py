"""Compile the kernels in place: gpt2core/kernels/_kernels.abi3.so.

    python3 scripts/build_kernels.py [ROOT]

Uses the compiler flags in pyproject.toml, like `pip install .`. Needs a C compiler and Python's
headers. If the build fails, it prints the reason and exits with 0: the NumPy kernels are used.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path


def build(root: Path) -> str | None:
    """Compile the kernels in `root`; returns None, or why it failed."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    (extension,) = project["tool"]["setuptools"]["ext-modules"]
    include = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(include, "Python.h")):
        return f"no Python.h in {include}"
    target = root / (extension["name"].replace(".", "/") + ".abi3.so")
    part = target.with_suffix(f".{os.getpid()}")
    sources = [str(root / source) for source in extension["sources"]]
    flags = [*extension["extra-compile-args"], "-fPIC", "-shared", *extension["extra-link-args"]]
    compiler = os.environ.get("CC", "cc")
    try:
        done = subprocess.run(
            [compiler, *flags, f"-I{include}", *sources, "-o", str(part)],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        return f"no C compiler: {compiler}: {error.strerror}"
    if done.returncode:
        lines = done.stderr.splitlines()
        return next((line for line in lines if "error" in line), f"{compiler} failed")
    part.replace(target)  # running processes keep the old file mapped
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).parent.parent
    parser.add_argument("root", metavar="ROOT", type=Path, nargs="?", default=root)
    args = parser.parse_args()
    if sys.stderr.isatty():
        print("compiling the kernels (5 seconds)", file=sys.stderr)
    problem = build(args.root)
    if problem:
        print(f"kernels not built, NumPy is used instead: {problem}", file=sys.stderr)
