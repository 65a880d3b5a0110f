"""Time from process start to the text of the 10th token, for this project and its peers.

    make bench      or      python bench/cold_start.py [--runs 7] [--states warm,evicted,…]

Random weights of the 124M shape (see `random_model.py`) in each implementation's own format, with a
tokenizer and 4 prompt tokens. A run ends when the text reaches the waiting process. `dd`, `import
numpy` and the bare interpreter run to their end, for comparison. Runs alternate, so that a change
of the machine's speed affects all. A ratio is the median of the ratios of adjacent runs.
States:

    warm      all files are in the page cache: the same process has just run, untimed (some virtual
              machines reclaim idle pages within seconds)
    evicted   the model's files are not in the page cache
    dropped   no file is: Python, libraries and model are read from disk (needs root)
    volume    the model is on a volume of 300 MB/s with 1 ms latency (needs nbdkit and FUSE)

Writes bench/results/cold_start.json, which `plots.py` plots.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import states
from bench.implementations import F32, INT8, Implementation, implementations
from bench.measure import Run, compare, environment, run_alternating, save_results, seconds_of

STATES = ("warm", "evicted", "dropped", "volume")
# A subset for all states but `warm`, where runs take seconds.
SLOW_STATE_NAMES = (F32, INT8, "CTranslate2 f32", "CTranslate2 int8", "llama.cpp f32",
                    "llama.cpp Q8_0", "transformers")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument(
        "--seconds", type=float, default=180, help="approximate time for each state"
    )
    parser.add_argument(
        "--only", type=lambda s: s.split(","), default=(), help="names of implementations"
    )
    parser.add_argument("--states", type=lambda s: s.split(","), default=STATES)
    args = parser.parse_args()
    available = implementations(*args.only)
    report: dict[str, Any] = {}
    for state in args.states:
        chosen = {n: c for n, c in available.items() if state == "warm" or n in SLOW_STATE_NAMES}
        missing = _missing_requirement(state)
        if missing:
            print(f"\n{state}: skipped, needs {missing}")
            continue
        print(f"\n{state}", flush=True)
        with ExitStack() as stack:
            done = _runs(state, chosen, args.runs, args.seconds, stack)
        report[state] = compare(seconds_of(done), F32, INT8, "import numpy")
        for name, runs in done.items():
            report[state][name]["laps_ms"] = _laps(runs)
        if state == "warm":
            report["same_text"] = _same_text(done)
    save_results("cold_start", report)


def _missing_requirement(state: str) -> str:
    """What a state needs and this machine lacks, or ""."""
    if state == "dropped" and not states.can_drop_caches():
        return "root"
    if state == "volume" and not states.can_mount_slow_volume():
        return "nbdkit, nbdfuse and /dev/fuse"
    return ""


def _runs(
    state: str, chosen: dict[str, Implementation], runs: int, seconds: float, stack: ExitStack
) -> dict[str, list[Run]]:
    folders = {name: c.folder for name, c in chosen.items()}
    if state == "volume":
        folders = {n: stack.enter_context(states.slow_volume(f)) for n, f in folders.items()}
    commands = {name: c.command(folders[name]) for name, c in chosen.items()}
    packed = str(folders[F32] / "packed.safetensors")
    if state == "warm":
        folders["import numpy"] = folders["bare interpreter"] = Path(packed).parent
        commands["import numpy"] = [sys.executable, "-c", "import numpy"]
        commands["bare interpreter"] = [sys.executable, "-c", "pass"]
    else:
        folders["dd of the packed f32"] = folders[F32]
        commands["dd of the packed f32"] = ["dd", f"if={packed}", "of=/dev/null", "bs=128k"]
    before: dict[str, Callable[[str], None]] = {
        "evicted": lambda name: states.evict(folders[name]),
        "dropped": lambda _name: states.drop_caches(),
        "volume": lambda name: states.evict(folders[name]),
    }
    return run_alternating(
        commands, runs, environment(), before.get(state), warm_up=state == "warm", seconds=seconds
    )


def _same_text(done: dict[str, list[Run]]) -> list[str]:
    """The implementations that gave the same text as ours in f32."""
    text = done[F32][0].text
    same = [name for name, runs in done.items() if all(r.text == text for r in runs)]
    print(f"same text: {', '.join(same)}")
    return same


def _laps(runs: list[Run]) -> dict[str, float]:
    """Median milliseconds from process start to the end of each phase."""
    names = runs[0].report.get("laps", {})
    return {n: round(1000 * median(r.report["laps"][n] for r in runs), 1) for n in names}


if __name__ == "__main__":
    main()
