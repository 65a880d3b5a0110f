"""Waiting for what another thread does, without a pause that could be too short or too long."""

import os
from collections.abc import Callable
from time import monotonic

TIMEOUT_S = 60.0


def until(condition: Callable[[], object]) -> None:
    """Give way to other threads until `condition` holds; fails after a minute."""
    end = monotonic() + TIMEOUT_S
    while not condition():
        assert monotonic() < end, "it never came to that"
        os.sched_yield()
