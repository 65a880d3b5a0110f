"""Where an invoke's time went: one fixed set of phases, in milliseconds."""

import os
import time
from time import perf_counter

PHASES = ("process", "import", "source", "map", "tokenizer", "prefill", "decode", "total")


class Timings:
    """Phases of one invoke; those that did not happen stay 0."""

    def __init__(self) -> None:
        self._ms = dict.fromkeys(PHASES, 0.0)
        self._earlier = 0.0
        self._last = self._begin = perf_counter()

    def lap(self, phase: str) -> None:
        """Book the time since the last lap, or the beginning, on `phase`."""
        now = perf_counter()
        self.add(phase, now - self._last)
        self._last = now

    def skip(self) -> None:
        """Book the time since the last lap on nothing but the total."""
        self._last = perf_counter()

    def add(self, phase: str, seconds: float) -> None:
        """Book `seconds` on `phase`."""
        self._ms[phase] += 1000 * seconds

    def include(self, earlier: "Timings") -> None:
        """Add what had to go before this invoke, without the pause that may lie between."""
        for phase, ms in earlier._ms.items():
            self._ms[phase] += ms
            self._earlier += ms

    def finished(self) -> dict[str, float]:
        """All phases, rounded to a tenth; `total` is this invoke and what had to go before it."""
        total = self._earlier + 1000 * (perf_counter() - self._begin)
        return {phase: round(ms, 1) for phase, ms in (self._ms | {"total": total}).items()}


def seconds_since_process_start() -> float:
    """Age of this process, to 10 ms (the kernel's clock tick); 0 where /proc does not tell.

    proc(5): field 22 of /proc/self/stat is the start time in ticks after boot.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        return max(0.0, now - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):  # not Linux
        return 0.0
