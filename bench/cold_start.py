"""Process start to the 10th token's text: ours against transformers and torch, whole processes.

    make bench      or      python bench/cold_start.py [--runs 7]

Random weights of the 124M shape (see `random_model.py`), float32, 4 prompt tokens, page cache
warm, tokenizer included. Runs alternate, so that a machine that slows down slows both; the ratio
is the median of the pairs' ratios. Writes bench/results/cold_start.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench.random_model import make

MODELS = ROOT / "bench" / "models"
RESULTS = ROOT / "bench" / "results"
PROMPT = "My name is John"
NEW_TOKENS = "10"


def seconds(command: list[str]) -> float:
    """Wall time of one process that must succeed."""
    began = perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    return perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="Cold start against transformers.")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    published = str(make(MODELS / "gpt2-published"))
    aligned = str(make(MODELS / "gpt2-aligned", aligned=True))
    ours = [sys.executable, "-m", "gpt2core", "generate", PROMPT, "-n", NEW_TOKENS, "--model"]
    theirs = [sys.executable, str(ROOT / "bench" / "with_transformers.py")]
    commands = {
        "transformers": [*theirs, published, PROMPT, NEW_TOKENS],
        "ours": [*ours, published],
        "ours, aligned file": [*ours, aligned],
        "import numpy": [sys.executable, "-c", "import numpy"],
        "bare interpreter": [sys.executable, "-c", "pass"],
    }
    for command in commands.values():  # bytecode and page cache
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.runs):
        for name, command in commands.items():
            times[name].append(seconds(command))
    report = {}
    for name, values in times.items():
        ratios = [t / v for t, v in zip(times["transformers"], values, strict=True)]
        report[name] = {
            "median_ms": round(1000 * statistics.median(values)),
            "min_ms": round(1000 * min(values)),
            "max_ms": round(1000 * max(values)),
            "transformers_takes_times": round(statistics.median(ratios), 2),
        }
        print(
            f"{name:<20}{report[name]['median_ms']:>7} ms"
            f"  ({report[name]['min_ms']}-{report[name]['max_ms']})"
            f"  {report[name]['transformers_takes_times']:>7.2f}x"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cold_start.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
