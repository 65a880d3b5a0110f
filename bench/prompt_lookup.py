"""The speedup of prompt lookup: greedy texts of 50 and 200 tokens, one sequence at a time.

    make bench      or      python bench/prompt_lookup.py [--rounds 60]

Random weights of the 124M shape generate more repetitions than real text has. Two measurements are
therefore combined: tokens per pass with the demo model, and the time of a pass with four rows
against one row with the 124M shape in int8. The worst case is measured directly with that shape:
there are always draft tokens, and all are wrong. Writes bench/results/prompt_lookup.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.implementations import INT8, implementations
from bench.measure import ROOT, machine, save_results
from gpt2core import Engine
from gpt2core.generation import Generation, Prompt
from gpt2core.pack import pack
from gpt2core.prompt_lookup import MAX_DRAFT_TOKENS, DraftCost, PromptLookup
from gpt2core.scheduler import Scheduler

PROMPTS = [
    "Once upon a time there was a king who",
    "The old woman said to her son,",
    "My name is",
    "In the deep forest there lived a",
    "A fox and a hare went",
    "When the youngest brother came to the castle,",
    "“Dear wife,” said he,",
    "There was once a poor miller",
    "The princess wept and",
    "The wolf knocked at the door and",
    "Far away, by the sea,",
    "He took the golden ring and",
]


class _CountingCost(DraftCost):
    """Always permits draft tokens, and counts the passes that verify some."""

    is_low = True
    n_drafted = 0

    def add(self, n_rows: int, seconds: float) -> None:
        super().add(n_rows, seconds)
        self.n_drafted += n_rows > 1


class _WrongLookup(PromptLookup):
    """Proposes, wherever it does not pause, tokens that do not follow."""

    def draft_tokens(self, new_ids: Sequence[int], limit: int) -> list[int]:
        paused = self._pause > 0
        super().draft_tokens(new_ids, limit)
        return [] if paused else [(new_ids[-1] + 1) % 1000] * limit


def cost_of_wrong_guesses(engine: Engine, rounds: int, tokens: int = 200) -> float:
    """The time of a text with `_WrongLookup`, divided by that of one without prompt lookup."""
    ratios = []
    for _ in range(rounds):
        took = []
        for lookup in (False, True):
            scheduler = Scheduler(engine._forward, engine.config, None, prompt_lookup=lookup)
            scheduler.add(Prompt(0, [1, 2, 3, 4], tokens))
            scheduler._waiting[0].lookup = _WrongLookup([1, 2, 3, 4])
            began = perf_counter()
            while len(scheduler):
                scheduler.step()
            took.append(perf_counter() - began)
        ratios.append(took[1] / took[0])
    return median(ratios)


def passes(engine: Engine, text: str, tokens: int) -> tuple[int, int, int]:
    """The number of tokens, of passes, and of passes with draft tokens."""
    scheduler = engine.scheduler()
    scheduler._draft_cost = cost = _CountingCost()
    scheduler.add(Prompt(0, engine.encode_prompt(text), tokens))
    n = 0
    while True:
        n += 1
        for _, _, end in scheduler.step():
            if isinstance(end, Generation):
                return len(end.ids), n, cost.n_drafted


def cost_of_guesses(engine: Engine, rounds: int = 60) -> float:
    """The time of a pass with four rows, divided by that of a pass with one row."""
    forward = engine._forward
    cache = forward.new_cache(128)
    forward.hidden_states([[1] * 64], [cache])
    times: dict[int, list[float]] = {1: [], 1 + MAX_DRAFT_TOKENS: []}
    for _ in range(rounds):
        for rows, taken in times.items():
            began = perf_counter()
            forward.greedy(forward.hidden_states([[1] * rows], [cache]))
            taken.append(perf_counter() - began)
            cache.n_kv = 64
    single, drafted = times.values()
    return median(g / s for g, s in zip(drafted[10:], single[10:], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    packed = implementations(INT8)[INT8].folder
    engine = Engine.open(packed, kernels="native")
    cost = cost_of_guesses(engine, rounds)
    wrong = cost_of_wrong_guesses(engine, rounds // 6)
    print(
        f"124M int8: a pass of {1 + MAX_DRAFT_TOKENS} rows takes {cost:.2f} times a pass of one row"
    )
    print(f"124M int8: 200 tokens with wrong draft tokens only take {wrong:.3f} times as long")
    report: dict[str, Any] = {
        "machine": machine(),
        "cost_of_guesses": round(cost, 3),
        "cost_of_wrong_guesses": round(wrong, 3),
    }
    with TemporaryDirectory() as folder:
        demo = Path(folder) / "demo"
        pack(ROOT / "models" / "demo", demo, "int8")
        engine = Engine.open(demo, kernels="native")
        for tokens in (50, 200):
            gains, speeds = [], []
            for text in PROMPTS:
                made, n, n_drafted = passes(engine, text, tokens)
                gains.append(made / n)
                speeds.append(made / (n + n_drafted * (cost - 1)))
            report[f"tokens={tokens}"] = {
                "tokens_per_pass": _spread(gains),
                "times_as_fast": _spread(speeds),
            }
            print(
                f"{tokens} tokens: {median(gains):.2f} tokens per pass"
                f" ({min(gains):.2f}-{max(gains):.2f}),"
                f" speedup {median(speeds):.2f} ({min(speeds):.2f}-{max(speeds):.2f})"
            )
    save_results("prompt_lookup", report)


def _spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    measured = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in measured.items()}


if __name__ == "__main__":
    main()
