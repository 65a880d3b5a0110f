"""Runs commands on a pseudo-terminal of 100 columns."""

import os
import subprocess
import sys
import termios

from tests.conftest import ROOT


def run_on_terminal(*args: str, **environ: str) -> tuple[int, str]:
    """Run `python -m ARGS` on a terminal; returns the exit code and the output."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    process = subprocess.Popen(
        [sys.executable, "-m", *args], stdout=theirs, stderr=theirs, cwd=ROOT, env=environ
    )
    os.close(theirs)
    output = b""
    try:
        while data := os.read(ours, 65536):
            output += data
    except OSError:  # on Linux, the other side has closed
        pass
    os.close(ours)
    return process.wait(), output.decode()
