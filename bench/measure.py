"""Times processes, and prints and saves the results."""

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
    """One process: seconds from its start to its first line of output, or to its end."""

    seconds: float
    text: str
    report: dict[str, Any]
    """The second line of output of a `bench.harness` script; `laps` in seconds since the start."""


def run(
    command: Sequence[str], environ: Mapping[str, str] | None = None, *, whole: bool = False
) -> Run:
    """Time one process, to its end if `whole`.

    Raises:
        SystemExit: the process failed.
    """
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
    if "laps" in report:  # perf_counter() is shared by all processes
        report["laps"] = {name: at - began for name, at in report["laps"].items()}
    return Run(took, text.decode(errors="replace"), report)


def run_alternating(
    commands: Mapping[str, Sequence[str]],
    runs: int,
    environ: Mapping[str, str] | None = None,
    before: Callable[[str], None] | None = None,
    *,
    whole: bool = False,
    warm_up: bool = False,
    count_first: bool = False,
    seconds: float = math.inf,
) -> dict[str, list[Run]]:
    """Run the commands in turn, so that a change of the machine's speed affects all.

    The first run of each is discarded unless `count_first`, because it writes bytecode. With
    `warm_up` an untimed run precedes every run. `before(name)` is called before each process. No
    round starts after `seconds`.
    """
    from tqdm import tqdm

    done: dict[str, list[Run]] = {name: [] for name in commands}
    deadline = perf_counter() + seconds
    numbers = range(int(count_first), runs + 1)
    total = len(numbers) * len(commands)
    with tqdm(total=total, unit=" runs", disable=None, leave=False, dynamic_ncols=True) as bar:
        for number in numbers:
            if number > 1 and perf_counter() > deadline:
                break
            for name, command in commands.items():
                bar.set_description(name)
                if before:
                    before(name)
                if warm_up and number:
                    run(command, environ, whole=whole)
                if number or not warm_up:
                    result = run(command, environ, whole=whole)
                    if number:
                        done[name].append(result)
                bar.update()
    return done


def seconds_of(done: Mapping[str, Sequence[Run]]) -> dict[str, list[float]]:
    """The seconds of each run."""
    return {name: [r.seconds for r in results] for name, results in done.items()}


def compare(
    values: Mapping[str, list[float]], *references: str, unit: str = "ms", scale: float = 1000
) -> dict[str, Any]:
    """Print and return median, minimum and maximum of scaled values, and ratios to `references`.

    A ratio is the median of the ratios of adjacent runs.
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


# Development machines may set these: a BLAS kernel for another processor, Python without bytecode.
# `bench/with_ours.py` sets OPENBLAS_THREAD_TIMEOUT itself, as users get it.
REMOVED_VARIABLES = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "OPENBLAS_THREAD_TIMEOUT",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONUNBUFFERED",
)


def environment() -> dict[str, str]:
    """The environment of the processes: with this project, without `REMOVED_VARIABLES`."""
    own = {name: value for name, value in os.environ.items() if name not in REMOVED_VARIABLES}
    return {**own, "PYTHONPATH": str(ROOT)}


def machine() -> dict[str, Any]:
    """The processor, its vector extensions, and the number of usable CPUs."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    flags = fields.get("flags", "").split()  # x86 only
    return {
        "processor": fields.get("model name", ""),
        "instructions": [name for name in ("avx2", "avx512f", "amx_tile") if name in flags],
        "cpus": len(os.sched_getaffinity(0)),
    }


def save_results(name: str, report: Mapping[str, Any]) -> None:
    """Update `bench/results/NAME.json`; entries that are not in `report` are kept."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **report}, indent=2) + "\n")
