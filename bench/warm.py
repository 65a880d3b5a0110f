"""What takes how long once everything is warm: a token, prompts, many sequences together.

    make bench      or      python bench/warm.py [token] [prompts] [together] [--runs 3]

Random weights of the 124M shape; every contestant in a process of its own, in turn, medians of
repeats in each (see `peer.py`):

    token      one of 30 more tokens, after 4
    prompts    64, 512 and 1,000 tokens to the first new one
    together   tokens a second of 8 and 32 prompts of 5 to 11 tokens, 20 new ones each; and one by
               one for ours

Writes bench/results/token.json, prompts.json, together.json.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.contestants import F32, INT8, TABLE, contestants
from bench.measure import compared, environment, in_turn, keep

# The words for `peer.py`, and what a number of theirs is.
WORK = {
    "token": (["token=30"], "ms", 1.0),
    "prompts": (["prompt=64", "prompt=512", "prompt=1000"], "ms", 1.0),
    "together": (["together=1", "together=8", "together=32"], "tokens_per_s", 1.0),
}
CANNOT = {
    "token": ("plain NumPy",),  # each of its tokens is another whole pass
    "prompts": ("plain NumPy", "ours aligned", "ours published"),
    "together": ("plain NumPy", "ours aligned", "ours published",
                 "ONNX Runtime f32"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", nargs="*", default=list(WORK), metavar="|".join(WORK))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=180, help="for each kind of work, about")
    parser.add_argument("--only", type=lambda s: s.split(","), default=(), help="contestants")
    args = parser.parse_args()
    for work in args.work:
        names = [name for name in args.only or TABLE if name not in CANNOT[work]]
        words, unit, scale = WORK[work]
        commands = {name: [*c.command(), *words] for name, c in contestants(*names).items()}
        done = in_turn(commands, args.runs, environment(), first=True, seconds=args.seconds)
        report: dict[str, Any] = {}
        for word in words:
            print(f"\n{word}", flush=True)
            values = {name: [run.report[word] for run in runs] for name, runs in done.items()}
            report[word] = compared(values, F32, INT8, unit=unit, scale=scale)
        report["blas"] = {name: runs[0].report["blas"] for name, runs in done.items()}
        keep(work, report)


if __name__ == "__main__":
    main()
