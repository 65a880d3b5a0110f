"""Tokens a second of 32 prompts: together, one after the other, and transformers with one batch.

    make bench      or      python bench/throughput.py [--runs 3]

Random weights of the 124M shape, float32, prompts of 5 to 11 tokens, 20 new ones each, once
everything is warm: in each process the median of some repeats, processes in turn. Writes
bench/results/throughput.json.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

PROMPTS = [f"My name is John {i}" + " and so" * (i % 4) for i in range(32)]
COUNT = 20
REPEATS = 5


def tell(took: list[float], texts: list[str]) -> None:
    """What a process says: its texts, then tokens a second."""
    print(json.dumps(texts))
    speed = len(PROMPTS) * COUNT / statistics.median(took[1:])
    print(json.dumps({"tokens_per_s": speed}))


def main() -> None:
    from bench.cold_start import packed_model
    from bench.measure import MODELS, ROOT, in_checkout, in_turn, keep
    from bench.random_model import make

    parser = argparse.ArgumentParser(description="Tokens a second of many prompts.")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    published = make(MODELS / "gpt2-published").absolute()
    packed = str(packed_model(published, "f32"))
    ours = [sys.executable, str(ROOT / "bench/with_ours_batch.py"), packed]
    theirs = [sys.executable, str(ROOT / "bench/with_transformers_batch.py"), str(published)]
    commands = {
        "ours, together": [*ours, "together"],
        "ours, one by one": [*ours, "alone"],
        "transformers, one batch": theirs,
    }
    done = in_turn(commands, args.runs, in_checkout())
    report: dict[str, Any] = {}
    for name, runs in done.items():
        speeds = [run.report["tokens_per_s"] for run in runs]
        rivals = [run.report["tokens_per_s"] for run in done["ours, together"]]
        ratios = [rival / speed for rival, speed in zip(rivals, speeds, strict=True)]
        report[name] = {
            "tokens_per_s": round(statistics.median(speeds), 1),
            "min": round(min(speeds), 1),
            "max": round(max(speeds), 1),
            "ours_together_times": round(statistics.median(ratios), 2),
            "same_texts": all(run.text == done["ours, together"][0].text for run in runs),
        }
        print(f"{name:<26}", report[name], flush=True)
    keep("throughput", report)


if __name__ == "__main__":
    main()
