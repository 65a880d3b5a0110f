"""Waits for a condition without sleeping."""

import os
from collections.abc import Callable
from time import monotonic

TIMEOUT_S = 60.0


def until(condition: Callable[[], object]) -> None:
    """Yield to other threads until `condition` is true; fails after a minute."""
    end = monotonic() + TIMEOUT_S
    while not condition():
        assert monotonic() < end, "the condition is not true after a minute"
        os.sched_yield()
