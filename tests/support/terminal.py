"""Commands on a pseudo-terminal of 100 columns."""

import os
import subprocess
import sys
import termios

from tests.conftest import ROOT


def run_on_terminal(*args: str, **environ: str) -> tuple[int, str]:
    """`python -m ARGS` with stdout and stderr on a terminal: the exit code, and what it showed."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    process = subprocess.Popen(
        [sys.executable, "-m", *args], stdout=theirs, stderr=theirs, cwd=ROOT, env=environ
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:  # Linux's way to say that the other side has closed
        pass
    os.close(ours)
    return process.wait(), shown.decode()
