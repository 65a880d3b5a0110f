"""Speed after warm-up: a token, prompts of several lengths, batches.

    make bench      or      python bench/warm.py [token] [prompts] [together] [--runs 3]

Random weights of the 124M shape. Every implementation runs in its own process, alternating, with
medians of repeats in each (see `harness.py`):

    token      a token, after 4 prompt tokens
    prompts    a prompt of 64, 512 and 1,000 tokens, to the first new token
    together   tokens per second of batches of 1, 8 and 32 prompts of 5 to 11 tokens, 20 new tokens
               each

Writes bench/results/token.json, prompts.json, together.json.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.implementations import F32, INT8, TABLE, implementations
from bench.measure import compare, environment, run_alternating, save_results

# Arguments of `harness.py`, and the unit and scale of their results.
WORK = {
    "token": (["token=30"], "ms", 1.0),
    "prompts": (["prompt=64", "prompt=512", "prompt=1000"], "ms", 1.0),
    "together": (["together=1", "together=8", "together=32"], "tokens_per_s", 1.0),
}
EXCLUDED = {
    "token": ("plain NumPy",),  # it has no cache: a token takes as long as a prompt
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
    parser.add_argument(
        "--seconds", type=float, default=180, help="approximate time for each kind of work"
    )
    parser.add_argument(
        "--only", type=lambda s: s.split(","), default=(), help="names of implementations"
    )
    args = parser.parse_args()
    for work in args.work:
        names = [name for name in args.only or TABLE if name not in EXCLUDED[work]]
        words, unit, scale = WORK[work]
        commands = {name: [*c.command(), *words] for name, c in implementations(*names).items()}
        done = run_alternating(
            commands, args.runs, environment(), count_first=True, seconds=args.seconds
        )
        report: dict[str, Any] = {}
        for word in words:
            print(f"\n{word}", flush=True)
            values = {name: [run.report[word] for run in runs] for name, runs in done.items()}
            report[word] = compare(values, F32, INT8, unit=unit, scale=scale)
        report["blas"] = {name: runs[0].report["blas"] for name, runs in done.items()}
        save_results(work, report)


if __name__ == "__main__":
    main()
