"""The products of activations with weights. Everything that is fast or slow happens here."""

from typing import Any

import numpy as np

# `numpy.typing.NDArray[np.float32]`, without the 8 ms that importing it takes
Float32 = np.ndarray[tuple[Any, ...], np.dtype[np.float32]]

# OpenBLAS copies the weights into its own layout before it multiplies a matrix with them, which
# costs more than the product itself while there are few rows. Up to so many rows, one
# matrix-vector product each is faster: they share the weights in the processor's cache.
FEW_ROWS = 6


def linear(x: Float32, weight: Float32, bias: Float32) -> Float32:
    """x [n_seq, n_in], weight [n_in, n_out], bias [n_out] -> [n_seq, n_out]."""
    if 1 < len(x) <= FEW_ROWS:
        product: Float32 = np.empty((len(x), weight.shape[1]), np.float32)
        for row, out in zip(x, product, strict=True):
            np.matmul(row, weight, out=out)
    else:
        product = np.matmul(x, weight)
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
    import ctypes  # 2 ms

    core: Any = np._core._multiarray_umath  # type: ignore[attr-defined]
    library = ctypes.CDLL(core.__file__)
    for symbol in ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_"):
        if hasattr(library, symbol):
            getattr(library, symbol)(n)
            return True
    return False
