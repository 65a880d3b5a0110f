"""Make a tree of Python packages ready for the image: less of it, compiled, the same every time.

    python3 slim_image.py ROOT

ROOT is laid out as the image's root will be. Removes what no code path of the function reads (each
of it held by tests/test_image.py), compiles the rest to bytecode that is never checked against its
source (PEP 552: one `stat` less for every module, and nothing to write in a read-only image) and
that names files as they will be called there, and sets all times to one moment, so that the same
input gives the same layer.
"""

import argparse
import compileall
import os
import py_compile
import shutil
from pathlib import Path

TASK = "var/task"  # where Lambda keeps a function
MOMENT = 315_532_800  # 1980-01-01, the earliest that every archive format knows
# AWS's clients read a service's model when a client for it is made: ours makes one for S3, and
# credentials may be asked of STS, IAM Identity Center or a console login; large files go to Step
# Functions.
SERVICES = ("s3", "sts", "sso", "sso-oidc", "signin", "stepfunctions")
# Type stubs, headers, sources of extensions, static libraries: for those who build.
FOR_BUILDERS = ("*.pyi", "py.typed", "*.h", "*.c", "*.pyx", "*.pxd", "*.a", "*.pc", "*.f90")
# What pip leaves for itself; names, versions and licences stay.
FOR_PIP = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def unneeded(tree: Path) -> list[Path]:
    """Files and directories of a tree of packages that can go, each only once."""
    found = [path for name in ("tests", "__pycache__") for path in tree.rglob(name)]
    found += [path for pattern in FOR_BUILDERS for path in tree.rglob(pattern)]
    found += [path for name in FOR_PIP for path in tree.glob(f"*.dist-info/{name}")]
    found += [tree / "bin", tree / "numpy/_core/include", tree / "boto3/examples"]
    for package in ("botocore", "boto3"):
        services = [path for path in tree.glob(f"{package}/data/*") if path.is_dir()]
        found += [path for path in services if path.name not in SERVICES]
    there = {path for path in found if path.exists()}
    return sorted(path for path in there if there.isdisjoint(path.parents))


def slim(root: Path) -> None:
    """Change `root` in place."""
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
            os.utime(os.path.join(folder, name), (MOMENT, MOMENT))
        os.utime(folder, (MOMENT, MOMENT))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", metavar="ROOT", type=Path)
    slim(parser.parse_args().root)
