"""The larger GPT-2 models in int8 and bf16, against llama.cpp: cold start and a token when warm.

    make bench      or      python bench/sizes.py [355M] [774M] [1.5B] [--runs 3]

Random weights. Models are written when needed and deleted afterwards (1.5B needs 16 GB of disk
space). Writes bench/results/sizes.json.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.implementations import INT8, implementations
from bench.measure import MODELS, compare, environment, run_alternating, save_results, seconds_of

SIZES = ("355M", "774M", "1.5B")
NAMES = (INT8, "ours bf16", "llama.cpp Q8_0", "llama.cpp bf16")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", default=SIZES, metavar="|".join(SIZES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep the models in bench/models")
    args = parser.parse_args()
    report: dict[str, Any] = {}
    for size in args.sizes:
        found = implementations(*NAMES, size=size)
        cold = {name: c.command() for name, c in found.items()}
        warm = {name: [*command, "token=10"] for name, command in cold.items()}
        print(f"\n{size}, process start to the 10th token", flush=True)
        starts = seconds_of(run_alternating(cold, args.runs, environment(), warm_up=True))
        report[size] = {"cold_start": compare(starts, INT8, "ours bf16")}
        print(f"{size}, a token", flush=True)
        done = run_alternating(warm, args.runs, environment())
        tokens = {name: [r.report["token=10"] for r in runs] for name, runs in done.items()}
        report[size]["token"] = compare(tokens, INT8, "ours bf16", scale=1)
        for folder in MODELS.glob(f"gpt2-{size}-*") if not args.keep else ():
            shutil.rmtree(folder)
        save_results("sizes", report)


if __name__ == "__main__":
    main()
