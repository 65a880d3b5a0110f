"""The wheel, built from a clean clone and installed in an empty environment."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from gpt2core import __version__
from tests.support.kernels import needs_native

pytestmark = pytest.mark.slow
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
# Without files of the checkout and settings of the user.
ENVIRON = {"PATH": os.environ["PATH"]}


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, clone]
    subprocess.run([*PIP, *build], check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel; dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    install = ["--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run([*PIP, *install], check=True, stdout=subprocess.DEVNULL)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [folder / command[0], *command[1:]],
        capture_output=True,
        text=True,
        cwd=folder,
        env=ENVIRON,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_file_of_the_packages_and_the_demo_model(
    wheel: Path, clone: Path
) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path.relative_to(clone))
        for package in ("gpt2core", "handler")
        for path in (clone / package).rglob("*")
        if path.is_file() and path.suffix not in {".c", ".so", ".pyc"}
    }
    demo = {f"gpt2core/demo/{path.name}" for path in (clone / "models" / "demo").iterdir()}
    files = {name for name in names if ".dist-info/" not in name and not name.endswith(".so")}
    assert files == expected | demo


def test_the_wheel_has_the_compiled_kernels_for_every_python(wheel: Path, installed: Path) -> None:
    needs_native()
    assert "gpt2core/kernels/_kernels.abi3.so" in zipfile.ZipFile(wheel).namelist()
    assert "-cp311-abi3-linux_" in wheel.name
    assert run(installed, "gpt2core", "info").startswith("kernels:    native")


def test_the_installed_commands_run_from_the_wheel(installed: Path) -> None:
    module = run(installed, "python", "-c", "import handler.app; print(handler.app.__file__)")
    assert Path(module.strip()).is_relative_to(installed.parent)
    assert run(installed, "gpt2-lambda", "--version") == f"gpt2-lambda {__version__}\n"
    assert run(installed, "gpt2core", "--version") == f"gpt2core {__version__}\n"
    assert run(installed, "gpt2core", "generate", "Once upon a time", "-n", "3").count(" ") >= 4


@pytest.fixture
def url(installed: Path) -> Iterator[str]:
    """The address of `gpt2-lambda serve` with the demo model in the wheel."""
    with subprocess.Popen(
        [installed / "gpt2-lambda", "serve", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=installed,
        env=ENVIRON,
    ) as process:
        assert process.stderr
        try:
            line = process.stderr.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line
            yield found[0]
        finally:
            process.terminate()


def test_the_installed_server_generates_with_the_demo_model(url: str) -> None:
    request_fields = {"prompt": "Once upon a time", "max_new_tokens": 3}
    with urlopen(
        Request(f"{url}/generate", json.dumps(request_fields).encode()), timeout=60
    ) as reply:
        answer = json.load(reply)
    assert answer["model"] == "demo"
    assert answer["usage"]["completion_tokens"] == 3


def test_the_installed_server_serves_its_page(url: str) -> None:
    with urlopen(url, timeout=60) as reply:
        assert reply.headers["content-type"].startswith("text/html")
