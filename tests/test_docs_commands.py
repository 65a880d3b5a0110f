"""The local commands of README and docs, run as they are printed."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.until import until

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LOCAL = "http://127.0.0.1:8080"
# Downloads need a bucket or the Hub: tests/handler/store runs `fetch` against local servers.
NOT_RUN_HERE = ("python -m handler fetch", "python -m handler.runtime")


def _commands(begin: str) -> list[str]:
    """The indented commands of all pages that begin with `begin`, without comments."""
    found: list[str] = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        lines = re.findall(rf"^    ({begin}.*)$", text, re.MULTILINE)
        found += [re.sub(r"\s+#.*", "", line) for line in lines]
    return list(dict.fromkeys(found))


CURLS = [command for command in _commands("curl ") if LOCAL in command]
PYTHONS = _commands(r"python -m (?:handler|gpt2core)")
RUN_HERE = [command for command in PYTHONS if not command.startswith(NOT_RUN_HERE)]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "handler", "serve", "--port", "0"], stderr=file, cwd=ROOT
        )
    try:
        until(lambda: "\n" in log.read_text() or server.poll() is not None)
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        assert found, log.read_text()
        yield found[0]
    finally:
        server.terminate()
        server.wait()


def test_there_are_commands_to_run() -> None:
    assert len(CURLS) >= 5
    assert len(RUN_HERE) >= 3


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("command", CURLS)
def test_a_curl_command_of_the_docs_succeeds_at_the_local_server(
    command: str, address: str
) -> None:
    command = command.replace(LOCAL, address).replace("curl ", "curl -sS --fail-with-body ", 1)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "text" in done.stdout


@pytest.mark.parametrize("command", RUN_HERE)
def test_a_python_command_of_the_docs_succeeds(command: str, tmp_path: Path) -> None:
    command = re.sub(r"/path/to/gpt2 \S+", f"models/demo {tmp_path}/packed", command)
    command = re.sub(r"\bDIR\b", "models/demo", command)
    command = command.replace("python ", f"{sys.executable} ", 1)
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
