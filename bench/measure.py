"""Whole processes timed in turn, and how their times are shown and kept."""

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "bench" / "models"
RESULTS = ROOT / "bench" / "results"


class Run(NamedTuple):
    """One process: seconds from its start to its first line, or to its end where it prints none."""

    seconds: float
    text: str
    report: dict[str, Any]
    """The second line, of a script of `bench.peer`; its laps in seconds since the start."""


def run(
    command: Sequence[str], environ: Mapping[str, str] | None = None, *, whole: bool = False
) -> Run:
    """Time one process that must succeed; `whole`, to its end whatever it prints."""
    with tempfile.TemporaryFile() as errors:
        began = perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=environ
        )
        assert process.stdout
        text = process.stdout.readline()
        took = perf_counter() - began
        rest = process.stdout.read()
        process.stdout.close()
        failed = process.wait()
        if whole or not text:
            took = perf_counter() - began
        if failed:
            errors.seek(0)
            reason = errors.read().decode(errors="replace")
            raise SystemExit(f"{' '.join(command)} failed:\n{reason}")
    report = json.loads(rest) if rest and not whole else {}
    if "laps" in report:  # by the clock that all processes share
        report["laps"] = {name: at - began for name, at in report["laps"].items()}
    return Run(took, text.decode(errors="replace"), report)


def in_turn(
    commands: Mapping[str, Sequence[str]],
    runs: int,
    environ: Mapping[str, str] | None = None,
    before: Callable[[str], None] = lambda _name: None,
    *,
    whole: bool = False,
) -> dict[str, list[Run]]:
    """Runs of each command, one after the other, so that a machine that slows down slows them all.

    One run before counts nothing: it writes bytecode. `before` each process something may be put in
    order, outside of its time; it gets the command's name.
    """
    done: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(runs + 1):
        for name, command in commands.items():
            before(name)
            result = run(command, environ, whole=whole)
            if number:
                done[name].append(result)
    return done


def times(done: Mapping[str, Sequence[Run]]) -> dict[str, list[float]]:
    """Seconds alone."""
    return {name: [r.seconds for r in results] for name, results in done.items()}


def compared(times: Mapping[str, list[float]], reference: str) -> dict[str, Any]:
    """Median, least and most in milliseconds, and how many times the reference's time each takes.

    The ratio is the median of the ratios of runs that stood side by side. Printed as a table.
    """
    report = {}
    for name, values in times.items():
        ratios = [v / t for t, v in zip(times[reference], values, strict=True)]
        report[name] = {
            "median_ms": round(1000 * statistics.median(values)),
            "min_ms": round(1000 * min(values)),
            "max_ms": round(1000 * max(values)),
            f"times_of_{reference.replace(', ', '_').replace(' ', '_')}": round(
                statistics.median(ratios), 2
            ),
        }
        median, least, most, ratio = report[name].values()
        print(f"{name:<28}{median:>7} ms  ({least}-{most})  {ratio:>7.2f}x", flush=True)
    return report


def in_checkout() -> dict[str, str]:
    """An environment in which scripts find this project, and Python its bytecode."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def keep(name: str, report: Mapping[str, Any]) -> None:
    """Write `bench/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
