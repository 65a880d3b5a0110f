"""A clock that advances only in passes over the weights."""

from typing import Any

import pytest

from gpt2core import scheduler
from tests.support.forward import intercept


class Clock:
    """A pass takes the next value of `durations`, or `pass_s`; all in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pass_s: float) -> None:
        self.now = 100.0
        self.pass_s = pass_s
        self.durations: list[float] = []
        self.passes: list[int] = []
        """The number of sequences in each pass."""

        def slow(sequences: Any) -> None:
            self.now += self.durations.pop(0) if self.durations else self.pass_s
            self.passes.append(len(sequences))

        intercept(monkeypatch, slow)
        monkeypatch.setattr(scheduler, "monotonic", lambda: self.now)
