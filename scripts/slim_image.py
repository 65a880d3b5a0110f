"""Prepare Python packages for the image: remove unused files, compile, make the layer reproducible.

    python3 slim_image.py ROOT

ROOT has the layout of the image's root. Files that the function does not use are removed
(tests/test_image.py verifies this). Bytecode is not checked against its source (PEP 552), which
saves a `stat` for each module and works in a read-only image. All file times are set to one value,
so that the same input gives the same layer.
"""

import argparse
import compileall
import os
import py_compile
import shutil
from pathlib import Path

TASK = "var/task"  # Lambda's directory for function code
MODIFIED = 315_532_800  # 1980-01-01, the earliest time that all archive formats support
# botocore reads the model of a service when a client is created: S3 for models and results, Step
# Functions for large files; STS, IAM Identity Center and sign-in for credentials.
SERVICES = ("s3", "sts", "sso", "sso-oidc", "signin", "stepfunctions")
# Only needed to build packages or check types.
BUILD_FILES = ("*.pyi", "py.typed", "*.h", "*.c", "*.pyx", "*.pxd", "*.a", "*.pc", "*.f90")
# Only needed by pip; names, versions and licenses are kept.
PIP_FILES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def unneeded(tree: Path) -> list[Path]:
    """Files and directories in `tree` that are not used, without those inside others."""
    found = [path for name in ("tests", "__pycache__") for path in tree.rglob(name)]
    found += [path for pattern in BUILD_FILES for path in tree.rglob(pattern)]
    found += [path for name in PIP_FILES for path in tree.glob(f"*.dist-info/{name}")]
    found += [tree / "bin", tree / "numpy/_core/include", tree / "boto3/examples"]
    for package in ("botocore", "boto3"):
        services = [path for path in tree.glob(f"{package}/data/*") if path.is_dir()]
        found += [path for path in services if path.name not in SERVICES]
    existing = {path for path in found if path.exists()}
    return sorted(path for path in existing if existing.isdisjoint(path.parents))


def slim(root: Path) -> None:
    """Prepare `root` in place."""
    for path in unneeded(root / TASK):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    compiled = compileall.compile_dir(
        root,
        maxlevels=50,
        quiet=1,
        stripdir=str(root),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        raise SystemExit("a module does not compile")
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            os.utime(os.path.join(folder, name), (MODIFIED, MODIFIED))
        os.utime(folder, (MODIFIED, MODIFIED))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", metavar="ROOT", type=Path)
    slim(parser.parse_args().root)
