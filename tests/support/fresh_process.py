"""Code that runs in a Python process of its own, and what that process has imported."""

import json
import subprocess
import sys

from tests.conftest import ROOT

SECONDS = 60


def modules_after(code: str, **environ: str) -> set[str]:
    """The names in `sys.modules` after `code`; it must end without an error, and soon."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    path = [environ.pop("first", ""), *sys.path]
    result = subprocess.run(
        # -S: no site-packages' .pth files, which may import anything before we begin
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": ":".join(p for p in path if p), **environ},
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))
