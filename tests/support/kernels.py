"""The compiled kernels, for tests that need them."""

import pytest

from gpt2core.kernels import choose_native


def needs_native() -> str:
    """The instruction set of the kernels that run here; skips the test where none do."""
    native = choose_native()
    if native.instruction_set is None:
        pytest.skip(f"the compiled kernels {native.reason}")
    return native.instruction_set
