"""Skips tests that need the compiled kernels."""

import pytest

from gpt2core.kernels import choose_native


def needs_native() -> str:
    """The instruction set of the compiled kernels; skips the test if they do not run here."""
    native = choose_native()
    if native.instruction_set is None:
        pytest.skip(f"the compiled kernels {native.reason}")
    return native.instruction_set
