"""The arm64 image, with QEMU on other machines."""

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.containers import build, container, docker, sam_build
from tests.support.emulator import emulator_path

IMAGE = "gpt2-lambda-test-arm64"
EVENT = "events/direct-generate.json"
_ANY = platform.machine() == "aarch64" or shutil.which("qemu-aarch64-static")
pytestmark = [
    pytest.mark.arm64,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not _ANY, reason="QEMU is not installed: Debian's qemu-user-static"),
]
# e_machine in the ELF header: 183 is AArch64.
_MACHINES = """
import collections, pathlib
heads = (path.open("rb").read(20) for path in pathlib.Path("/var/task").rglob("*.so*"))
print(*{int.from_bytes(head[18:20], "little") for head in heads if head[:4] == b"\\x7fELF"})
"""


@pytest.fixture(scope="module")
def image(clone: Path) -> Iterator[str]:
    try:
        build(IMAGE, clone, ARCH="arm64")
        yield IMAGE
    finally:
        subprocess.run(["docker", "rmi", "-f", IMAGE], capture_output=True, check=False)


def test_arm64_replies_like_this_machine(image: str) -> None:
    run = ("run", "--rm", "--platform=linux/arm64", "--network=none", "--read-only")
    there = json.loads(docker(*run, image, "invoke", EVENT))
    command = [sys.executable, "-m", "handler", "invoke", EVENT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert there["generated_text"] == json.loads(done.stdout)["generated_text"]


def test_all_binaries_are_for_arm64(image: str) -> None:
    run = ("run", "--rm", "--platform=linux/arm64", "--network=none", "--entrypoint", "python3")
    assert docker(*run, image, "-S", "-c", _MACHINES) == "183"


def test_arm64_runs_under_the_emulator(image: str) -> None:
    rie = emulator_path("arm64")
    if rie is None:
        pytest.skip("AWS's emulator is not installed: `make test` does")
    options = ("--platform=linux/arm64", "-v", f"{rie}:/rie:ro", "--entrypoint", "/rie")
    command = ["python3", "-S", "bootstrap.py"]
    with container(image, *options, command=command) as function:
        event = {"prompt": "Once upon a time", "max_new_tokens": 2}
        assert function.invoke(event=event)["event"]["usage"]["completion_tokens"] == 2


def test_sam_build_makes_arm64_images(image: str, clone: Path, tmp_path: Path) -> None:
    options = ("--config-env", "arm64")
    assert f"sam build {' '.join(options)}" in (ROOT / "docs" / "deploy.md").read_text()
    for built in sam_build(clone, tmp_path / "built", "arm64", *options):
        assert docker("inspect", "-f", "{{.Architecture}}", built) == "arm64"
        run = ("run", "--rm", "--platform=linux/arm64", "--network=none", "--read-only")
        assert json.loads(docker(*run, built, "invoke", EVENT))["generated_text"]


def test_the_code_layer_is_the_same_for_both_architectures(image: str, clone: Path) -> None:
    name = f"{IMAGE}-not"
    try:
        build(name, clone)
        layers = [json.loads(docker("inspect", n))[0]["RootFS"]["Layers"] for n in (image, name)]
    finally:
        subprocess.run(["docker", "rmi", "-f", name], capture_output=True, check=False)
    assert layers[0][-1] == layers[1][-1]
