"""What the scripts of all peers share: when they got where, and the text to the process that waits.

A script is called `SCRIPT MODEL PROMPT N [AGAIN]`. It prints the text of N new tokens, then a line
of JSON: `laps`, the moments when its parts ended, by a clock that the caller's process shares; with
AGAIN also `token_ms`, what one more token takes once everything is warm.
"""

import sys
from collections.abc import Callable
from time import perf_counter

REPEATS = 5
_laps: dict[str, float] = {}


def lap(name: str) -> None:
    """The part called `name` ends now."""
    _laps[name] = perf_counter()


def main(generate: Callable[[str, int], str]) -> None:
    """Generate as the command line says; `generate` takes a prompt and exactly how many tokens."""
    prompt, count = sys.argv[2], int(sys.argv[3])
    text = generate(prompt, count)
    print(repr(text), flush=True)
    lap("tokens")
    report: dict[str, object] = {"laps": _laps}
    if len(sys.argv) > 4:
        report["token_ms"] = _token_ms(generate, prompt, int(sys.argv[4]))
    import json

    print(json.dumps(report))


def _token_ms(generate: Callable[[str, int], str], prompt: str, more: int) -> float:
    """The median of what `more` tokens take beyond the first, each."""
    took = []
    for _ in range(REPEATS):
        began = perf_counter()
        generate(prompt, 1)
        middle = perf_counter()
        generate(prompt, 1 + more)
        took.append(1000 * ((perf_counter() - middle) - (middle - began)) / more)
    return sorted(took)[REPEATS // 2]
