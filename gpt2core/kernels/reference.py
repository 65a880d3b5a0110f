"""Products of activations with weights in NumPy: the reference for the compiled kernels."""

from typing import Any

import numpy as np

from gpt2core.files.packed import GROUP
from gpt2core.files.safetensors import Tensor
from gpt2core.kernels.matrix import Matrix

# `numpy.typing.NDArray[np.float32]` without its import time of 8 ms
Float32 = np.ndarray[tuple[Any, ...], np.dtype[np.float32]]
# OpenBLAS copies the weights into its own layout for a matrix-matrix product, which for few rows
# costs more than the product itself. Up to this number of rows, one matrix-vector product for each
# row is faster: they share the weights in the CPU cache.
FEW_ROWS = 6


def needs_copy(tensor: Tensor) -> bool:
    """Whether NumPy needs an aligned float32 copy of a tensor.

    NumPy copies a misaligned operand for *every* product, and the header of the published gpt2 ends
    at byte 14,291.
    """
    return tensor.dtype != "F32" or not tensor.is_aligned


def to_float32(tensor: Tensor) -> Float32:
    """A tensor as aligned float32 without loss; the view itself if it already is."""
    return rows_to_float32(tensor, ...) if needs_copy(tensor) else tensor.data


def rows_to_float32(tensor: Tensor, rows: Any) -> Float32:
    """Copy `rows` of a tensor (`...` for all) to a new aligned float32 array."""
    data = tensor.data
    if tensor.dtype == "I8":
        return _dequantize(tensor, rows)
    if not tensor.is_aligned and rows is ...:
        # As bytes, because NumPy copies misaligned numbers one by one.
        aligned = np.empty(data.shape, data.dtype)
        aligned.reshape(-1).view(np.uint8)[:] = data.reshape(-1).view(np.uint8)
    else:
        aligned = np.array(data[rows], copy=True)
    if tensor.dtype == "BF16":  # the upper half of a float32
        return (aligned.astype(np.uint32) << 16).view(np.float32)
    return aligned.astype(np.float32, copy=False)


def _dequantize(tensor: Tensor, rows: Any) -> Float32:
    """`rows` of a quantized matrix: each integer times the scale of its group."""
    assert tensor.scale is not None
    if rows is ... and tensor.is_transposed:  # keep the memory layout
        return _dequantize(tensor.transposed(), rows).T
    integers = tensor.data[rows]
    # Groups run along the input axis. Rows are only taken of embeddings, where it is the last.
    scale = tensor.scale.data[rows] if tensor.axis else tensor.scale.data
    length = integers.shape[tensor.axis]
    spread = np.repeat(scale, GROUP, axis=tensor.axis)
    whole = spread[:, :length] if tensor.axis else spread[:length]
    product: Float32 = np.multiply(integers, whole, dtype=np.float32)
    return product


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
