"""Runs code before each forward pass."""

from collections.abc import Callable
from typing import Any

import pytest

from gpt2core.kernels import choose_native
from gpt2core.model import NumPyForward


def intercept(monkeypatch: pytest.MonkeyPatch, before: Callable[[Any], None]) -> None:
    """Call `before` with the sequences of each pass, whichever kernels compute it."""
    forwards: list[type] = [NumPyForward]
    if choose_native().instruction_set:
        from gpt2core.kernels.native import NativeForward

        forwards.append(NativeForward)
    for forward in forwards:
        _intercept(monkeypatch, forward, before)


def _intercept(
    monkeypatch: pytest.MonkeyPatch, forward: type, before: Callable[[Any], None]
) -> None:
    original = forward.hidden_states  # type: ignore[attr-defined]

    def hidden_states(self: Any, sequences: Any, *rest: Any) -> Any:
        before(sequences)
        return original(self, sequences, *rest)

    monkeypatch.setattr(forward, "hidden_states", hidden_states)
