"""Runs code in a new Python process and returns its imported modules."""

import json
import subprocess
import sys

from tests.conftest import ROOT

TIMEOUT_S = 60


def modules_after(code: str, **environ: str) -> set[str]:
    """The names in `sys.modules` after `code`, which must succeed."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    path = [environ.pop("first", ""), *sys.path]
    result = subprocess.run(
        # -S: skip .pth files, which may import modules
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": ":".join(p for p in path if p), **environ},
        timeout=TIMEOUT_S,
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))
