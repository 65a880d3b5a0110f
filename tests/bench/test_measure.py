"""How benchmarks run processes and compare their times."""

import sys
from pathlib import Path

import pytest

from bench import measure


def test_processes_run_without_the_settings_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in measure.REMOVED_VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    code = "import os; print(sorted(n for n in os.environ if n.startswith(('OPENB', 'PYTHOND'))))"
    run = measure.run([sys.executable, "-c", code], measure.environment())
    assert run.text.strip() == "['OPENBLAS_NUM_THREADS']"


def test_a_ratio_is_the_median_of_the_ratios_of_adjacent_runs() -> None:
    report = measure.compare({"ours": [1.0, 2.0, 10.0], "peer": [3.0, 4.0, 20.0]}, "ours")
    assert report["peer"]["times_of"] == {"ours": 2.0}
    assert report["peer"]["median_ms"] == 4000


def test_runs_alternate_each_after_a_discarded_warm_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    commands = {
        name: [sys.executable, "-S", "-c", f"open({str(log)!r}, 'a').write({name!r})"]
        for name in "ab"
    }
    done = measure.run_alternating(commands, 2, warm_up=True)
    assert log.read_text() == "aabb" * 2
    assert [len(runs) for runs in done.values()] == [2, 2]


def test_no_round_starts_after_the_time_limit() -> None:
    commands = {"pass": [sys.executable, "-S", "-c", "pass"]}
    assert len(measure.run_alternating(commands, 100, seconds=0)["pass"]) == 1


def test_results_that_were_not_measured_again_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    measure.save_results("name", {"warm": 1, "evicted": 2})
    measure.save_results("name", {"evicted": 3})
    assert (tmp_path / "name.json").read_text() == '{\n  "warm": 1,\n  "evicted": 3\n}\n'
