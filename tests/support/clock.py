"""Time that passes only in passes over the weights."""

from typing import Any

import pytest

from gpt2core import scheduler


class Clock:
    """`now` in seconds; every pass takes `pass_s`, or what `durations` says, first to last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pass_s: float) -> None:
        self.now = 100.0
        self.pass_s = pass_s
        self.durations: list[float] = []
        self.passes: list[int] = []
        """How many sequences entered each pass."""
        forward = scheduler.hidden_states

        def slow(weights: Any, config: Any, sequences: Any, caches: Any) -> Any:
            self.now += self.durations.pop(0) if self.durations else self.pass_s
            self.passes.append(len(sequences))
            return forward(weights, config, sequences, caches)

        monkeypatch.setattr(scheduler, "hidden_states", slow)
        monkeypatch.setattr(scheduler, "monotonic", lambda: self.now)
