"""Runs `python -m handler serve` in a separate process."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT
from tests.support.until import until

KEY = "an-api-key-for-the-tests"


def serve(log: Path, **environ: str) -> Iterator[str]:
    """Run a server for a fixture; yields its address."""
    with server(log, **environ) as (_, address):
        yield address


@contextmanager
def server(log: Path, **environ: str) -> Iterator[tuple[int, str]]:
    """Run a server; yields its process id and address. Its log must not contain a traceback."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "handler", "serve", "--port", "0"],
            stderr=file,
            cwd=ROOT,
            env=os.environ | environ,
        )
    try:
        until(lambda: "\n" in log.read_text() or process.poll() is not None)
        found = re.match(r"listening on (http://127\.0\.0\.1:\d+) ", log.read_text())
        assert found, log.read_text()
        yield process.pid, found[1]
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in log.read_text()
