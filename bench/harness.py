"""Shared by the scripts of all implementations: prints the text, then timings as JSON.

A script is called as `SCRIPT MODEL PROMPT N [WORK…]`. It prints the text of N new tokens, then one
line of JSON: `laps`, the values of `perf_counter()` at the end of each phase, and the result of
each WORK after warm-up, the median of some repeats:

    token=30              ms per token of 30 more tokens
    prompt=64             ms from a prompt of 64 tokens to its first new token
    together=8            tokens per second of a batch of 8 prompts, 20 new tokens each

`blas` lists the BLAS kernels of the loaded libraries (threadpoolctl).
"""

import sys
from collections.abc import Callable
from time import perf_counter

REPEATS = 3
TOGETHER_TOKENS = 20
Together = Callable[[list[str], int], None]
_laps: dict[str, float] = {}


def lap(name: str) -> None:
    """Record the end of the phase `name`."""
    _laps[name] = perf_counter()


def main(generate: Callable[[str, int], str], together: Together | None = None) -> None:
    """Run the script's command line.

    `generate` continues a prompt by exactly N tokens; `together` does the same for a batch.
    """
    prompt, count = sys.argv[2], int(sys.argv[3])
    text = generate(prompt, count)
    print(repr(text), flush=True)
    lap("tokens")
    report: dict[str, object] = {"laps": _laps}
    for work in sys.argv[4:]:
        kind, _, size = work.partition("=")
        if kind == "token":
            report[work] = _token_ms(generate, prompt, int(size))
        elif kind == "prompt":
            long = "My" + " and" * (int(size) - 1)
            report[work] = 1000 * _seconds(lambda long=long: generate(long, 1))
        elif together:
            prompts = [f"My name is John {i}" + " and so" * (i % 4) for i in range(int(size))]
            took = _seconds(lambda prompts=prompts: together(prompts, TOGETHER_TOKENS))
            report[work] = len(prompts) * TOGETHER_TOKENS / took
    if sys.argv[4:]:
        from threadpoolctl import threadpool_info

        report["blas"] = [
            f"{info['internal_api']} {info.get('architecture', '')}".strip()
            for info in threadpool_info()
        ]
    import json

    print(json.dumps(report))


def _seconds(function: Callable[[], object]) -> float:
    took = []
    for _ in range(REPEATS):
        began = perf_counter()
        function()
        took.append(perf_counter() - began)
    return sorted(took[1:])[REPEATS // 2 - 1]  # `statistics` takes 3 ms to import


def _token_ms(generate: Callable[[str, int], str], prompt: str, more: int) -> float:
    """Milliseconds per token of `more` tokens after the first."""
    took = []
    for _ in range(REPEATS):
        began = perf_counter()
        generate(prompt, 1)
        middle = perf_counter()
        generate(prompt, 1 + more)
        took.append(1000 * ((perf_counter() - middle) - (middle - began)) / more)
    return sorted(took)[REPEATS // 2]
