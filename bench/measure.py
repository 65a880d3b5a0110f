"""Whole processes timed in turn, and how their times are shown and kept."""

import json
import statistics
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "bench" / "models"
RESULTS = ROOT / "bench" / "results"


def seconds(command: list[str], environ: Mapping[str, str] | None = None) -> float:
    """Wall time of one process that must succeed."""
    began = perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environ)
    took = perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return took


def in_turn(
    commands: Mapping[str, list[str]],
    runs: int,
    environ: Mapping[str, str] | None = None,
    before: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each command, run after run, so that a machine that slows down slows them all.

    One run before counts nothing: bytecode and page cache. `before` each process something may be
    put in order, outside of its time.
    """
    times: dict[str, list[float]] = {name: [] for name in commands}
    for run in range(runs + 1):
        for name, command in commands.items():
            before()
            took = seconds(command, environ)
            if run:
                times[name].append(took)
    return times


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
        print(f"{name:<28}{median:>7} ms  ({least}-{most})  {ratio:>7.2f}x")
    return report


def keep(name: str, report: Mapping[str, Any]) -> None:
    """Write `bench/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
