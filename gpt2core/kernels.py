"""The products of activations with weights. Everything that is fast or slow happens here."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def linear(x: Float32, weight: Float32, bias: Float32) -> Float32:
    """x [n_seq, n_in], weight [n_in, n_out], bias [n_out] -> [n_seq, n_out]."""
    product: Float32 = np.matmul(x, weight)
    product += bias
    return product


def unembed(x: Float32, weight: Float32) -> Float32:
    """x [n_seq, n_embd], weight [vocab_size, n_embd] -> logits [n_seq, vocab_size]."""
    scores: Float32 = np.matmul(x, weight.T)
    return scores


def set_threads(n: int) -> bool:
    """Let NumPy's OpenBLAS use `n` threads from now on; False where it is another BLAS.

    The wheels on PyPI carry OpenBLAS under these symbol names; `OPENBLAS_NUM_THREADS` does the
    same for a process that sets it before NumPy is imported.
    """
    import ctypes  # NumPy has loaded it already

    core: Any = np._core._multiarray_umath  # type: ignore[attr-defined]
    library = ctypes.CDLL(core.__file__)
    for symbol in ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_"):
        if hasattr(library, symbol):
            getattr(library, symbol)(n)
            return True
    return False
