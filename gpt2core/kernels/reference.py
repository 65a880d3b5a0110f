"""Products of activations with weights in NumPy: the reference for the compiled kernels."""

from typing import Any

import numpy as np

from gpt2core.kernels.matrix import Float32, Matrix, to_float32

# OpenBLAS copies the weights into its own layout for a matrix-matrix product, which for few rows
# costs more than the product itself. Up to this number of rows, one matrix-vector product for each
# row is faster: they share the weights in the CPU cache.
FEW_ROWS = 6


def prepare(matrix: Matrix) -> Float32:
    """The matrix [n_in, n_out] as float32, converted on first use if its file needs it.

    Thread-safe: a race at worst converts it twice.
    """
    if matrix.prepared is None:
        matrix.prepared = to_float32(matrix.tensor)
    prepared: Float32 = matrix.prepared
    return prepared


def linear(x: Float32, matrix: Matrix) -> Float32:
    """x [n_tokens, n_in] -> [n_tokens, n_out], with the bias."""
    weight = prepare(matrix)
    if 1 < len(x) <= FEW_ROWS:
        product: Float32 = np.empty((len(x), weight.shape[1]), np.float32)
        for row, out in zip(x, product, strict=True):
            np.matmul(row, weight, out=out)
    else:
        product = np.matmul(x, weight)
    if matrix.bias is not None:
        product += matrix.bias
    return product


def unembed(x: Float32, matrix: Matrix) -> Float32:
    """x [n_tokens, n_embd] -> logits [n_tokens, vocab_size]."""
    scores: Float32 = np.matmul(x, prepare(matrix))
    return scores


def set_threads(n: int) -> bool:
    """Set the number of threads of NumPy's OpenBLAS; returns False if NumPy uses another BLAS.

    NumPy's wheels on PyPI export OpenBLAS under these symbol names. `OPENBLAS_NUM_THREADS` has the
    same effect if it is set before NumPy is imported.
    """
    import ctypes  # 2 ms

    core: Any = np._core._multiarray_umath  # type: ignore[attr-defined]
    library = ctypes.CDLL(core.__file__)
    for symbol in ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_"):
        if hasattr(library, symbol):
            getattr(library, symbol)(n)
            return True
    return False
