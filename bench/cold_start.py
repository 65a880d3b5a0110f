"""Process start to the 10th token's text: ours against its peers, whole processes.

    make bench      or      python bench/cold_start.py [--runs 7] [--states warm,evicted,…]

Random weights of the 124M shape (see `random_model.py`), each peer with them in its own format, 4
prompt tokens, tokenizer included; until the text arrives at the process that waits. Floors are
timed to their end. Runs alternate, so that a machine that slows down slows all; a ratio is the
median of the ratios of runs side by side. States:

    warm      everything is in the page cache: the same process has just run, untimed (some virtual
              machines take idle pages away within seconds)
    evicted   the model's files are not
    dropped   nothing is: Python, libraries and model come from disk (needs root)
    volume    the model lies on a volume of 300 MB/s that takes 1 ms to answer (needs nbdkit, FUSE)

Writes bench/results/cold_start.json. `plots.py` makes the pictures of it.
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
from bench.contestants import F32, INT8, Contestant, contestants
from bench.measure import Run, compared, environment, in_turn, keep, times

STATES = ("warm", "evicted", "dropped", "volume")
# Where every run is seconds long: only the usual choices.
CHOSEN = (F32, INT8, "CTranslate2 f32", "CTranslate2 int8", "llama.cpp f32", "llama.cpp Q8_0",
          "transformers")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=180, help="for each state, about")
    parser.add_argument("--only", type=lambda s: s.split(","), default=(), help="contestants")
    parser.add_argument("--states", type=lambda s: s.split(","), default=STATES)
    args = parser.parse_args()
    everybody = contestants(*args.only)
    report: dict[str, Any] = {}
    for state in args.states:
        chosen = {n: c for n, c in everybody.items() if state == "warm" or n in CHOSEN}
        reason = _cannot(state)
        if reason:
            print(f"\n{state}: left out, {reason}")
            continue
        print(f"\n{state}", flush=True)
        with ExitStack() as stack:
            done = _runs(state, chosen, args.runs, args.seconds, stack)
        report[state] = compared(times(done), F32, INT8, "import numpy")
        for name, runs in done.items():
            report[state][name]["laps_ms"] = _laps(runs)
        if state == "warm":
            report["same_text"] = _agreeing(done)
    keep("cold_start", report)


def _cannot(state: str) -> str:
    """Why a state cannot be had here, or nothing."""
    if state == "dropped" and not states.can_drop_caches():
        return "which takes root"
    if state == "volume" and not states.can_slow_down():
        return "which takes nbdkit, nbdfuse and /dev/fuse"
    return ""


def _runs(
    state: str, chosen: dict[str, Contestant], runs: int, seconds: float, stack: ExitStack
) -> dict[str, list[Run]]:
    folders = {name: contestant.folder for name, contestant in chosen.items()}
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
    return in_turn(
        commands, runs, environment(), before.get(state), twins=state == "warm", seconds=seconds
    )


def _agreeing(done: dict[str, list[Run]]) -> list[str]:
    """Which contestants gave the same text as ours in f32: independent checks of the network."""
    text = done[F32][0].text
    agreeing = [name for name, runs in done.items() if all(r.text == text for r in runs)]
    print(f"the same text: {', '.join(agreeing)}")
    return agreeing


def _laps(runs: list[Run]) -> dict[str, float]:
    """Median milliseconds from the process start to the end of each part."""
    names = runs[0].report.get("laps", {})
    return {n: round(1000 * median(r.report["laps"][n] for r in runs), 1) for n in names}


if __name__ == "__main__":
    main()
