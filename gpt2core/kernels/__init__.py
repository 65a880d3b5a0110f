"""The forward pass with native (compiled) kernels, and NumPy's matrix products.

Importing this package loads neither the compiled kernels nor NumPy.
"""

from gpt2core.startup.slim_typing import NamedTuple

CHOICES = ("auto", "native", "numpy")


class Native(NamedTuple):
    """Whether the native (compiled) kernels run on this processor."""

    instruction_set: str | None
    """avx512, avx2 or neon; None if they do not run."""
    reason: str
    """Why they do not run, continuing "the native kernels"; or ""."""


def choose_native() -> Native:
    """Select the fastest kernels that this processor supports.

    Call it again after a snapshot restore: the processor may differ.
    """
    try:
        from gpt2core.kernels import _kernels
    except ImportError as error:
        is_built = not isinstance(error, ModuleNotFoundError)
        problem = f"cannot be loaded ({error})" if is_built else "are not built"
        return Native(None, f"{problem}: run python scripts/build_kernels.py to build them")
    name = _kernels.choose(None)
    unsupported = "are not supported by this processor (they need AVX2, FMA and F16C, or Armv8)"
    return Native(name, "" if name else unsupported)
