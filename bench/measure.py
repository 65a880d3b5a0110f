"""Whole processes timed in turn, and how their times are shown and kept."""

import json
import math
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
    before: Callable[[str], None] | None = None,
    *,
    whole: bool = False,
    twins: bool = False,
    first: bool = False,
    seconds: float = math.inf,
) -> dict[str, list[Run]]:
    """Runs of each command, one after the other, so that a machine that slows down slows them all.

    The `first` run of each counts nothing unless it is to, as it writes bytecode; with `twins` one
    before every run, so that whatever it needs is in memory. `before` each process something may
    be put in order, outside of its time; it gets the command's name. No round begins after so many
    `seconds`.
    """
    from tqdm import tqdm

    done: dict[str, list[Run]] = {name: [] for name in commands}
    give_up = perf_counter() + seconds
    numbers = range(int(first), runs + 1)
    total = len(numbers) * len(commands)
    with tqdm(total=total, unit=" runs", disable=None, leave=False, dynamic_ncols=True) as bar:
        for number in numbers:
            if number > 1 and perf_counter() > give_up:
                break
            for name, command in commands.items():
                bar.set_description(name)
                if before:
                    before(name)
                if twins and number:
                    run(command, environ, whole=whole)
                if number or not twins:
                    result = run(command, environ, whole=whole)
                    if number:
                        done[name].append(result)
                bar.update()
    return done


def times(done: Mapping[str, Sequence[Run]]) -> dict[str, list[float]]:
    """Seconds alone."""
    return {name: [r.seconds for r in results] for name, results in done.items()}


def compared(
    values: Mapping[str, list[float]], *references: str, unit: str = "ms", scale: float = 1000
) -> dict[str, Any]:
    """Median, least and most of `scale` times the values, and how many times a reference's.

    A ratio is the median of the ratios of runs that stood side by side. Printed as a table.
    """
    report: dict[str, Any] = {}
    known = [name for name in references if name in values]
    for name, own in values.items():
        scaled = [scale * value for value in own]
        digits = 0 if min(scaled) >= 100 else 2
        row = report[name] = {
            f"median_{unit}": round(statistics.median(scaled), digits),
            f"min_{unit}": round(min(scaled), digits),
            f"max_{unit}": round(max(scaled), digits),
        }
        median, least, most = row.values()
        row["times_of"] = {
            other: round(
                statistics.median(v / t for t, v in zip(values[other], own, strict=True)), 3
            )
            for other in known
        }
        ratios = "  ".join(f"{ratio:>6.2f}x {other}" for other, ratio in row["times_of"].items())
        print(f"{name:<22}{median:>8} {unit}  ({least}-{most})  {ratios}", flush=True)
    return report


# Set on some machines, and in nobody's deployment: another BLAS kernel than the processor's own,
# and Python without bytecode.
NOT_FOR_CONTESTANTS = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONUNBUFFERED",
)


def environment() -> dict[str, str]:
    """What every contestant runs in: scripts find this project, libraries choose for themselves."""
    own = {name: value for name, value in os.environ.items() if name not in NOT_FOR_CONTESTANTS}
    return {**own, "PYTHONPATH": str(ROOT)}


def machine() -> dict[str, Any]:
    """The processor and how many of its CPUs this process may use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    about = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    flags = about.get("flags", "").split()  # x86 only
    return {
        "processor": about.get("model name", ""),
        "instructions": [name for name in ("avx2", "avx512f", "amx_tile") if name in flags],
        "cpus": len(os.sched_getaffinity(0)),
    }


def keep(name: str, report: Mapping[str, Any]) -> None:
    """Write `bench/results/NAME.json`; what was measured before and is not in `report` stays."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **report}, indent=2) + "\n")
