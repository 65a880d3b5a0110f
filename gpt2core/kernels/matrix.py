"""`Matrix`: the weights of one product, as stored in their file."""

from typing import Any

import numpy as np

from gpt2core.files.packed import GROUP
from gpt2core.files.safetensors import Tensor

# `numpy.typing.NDArray[np.float32]` without its import time of 8 ms
Float32 = np.ndarray[tuple[Any, ...], np.dtype[np.float32]]


class Matrix:
    """Weights [n_in, n_out], F32, F16, BF16 or I8 with scales at any alignment, and a bias [n_out].

    `tensor` may be a transposed view: embeddings and packed matrices are stored as [n_out, n_in].
    The kernels in use decide whether to convert it, and keep their own form of it in `prepared`.
    """

    __slots__ = ("bias", "prepared", "tensor")

    def __init__(self, tensor: Tensor, bias: Float32 | None = None) -> None:
        self.tensor = tensor
        self.bias = bias
        self.prepared: Any = None


def needs_copy(tensor: Tensor) -> bool:
    """Whether NumPy needs an aligned float32 copy of a tensor.

    NumPy copies a misaligned operand for *every* product, and the header of the published gpt2 ends
    at byte 14,291.
    """
    return tensor.dtype != "F32" or not tensor.data.flags.aligned


def to_float32(tensor: Tensor) -> Float32:
    """A tensor as aligned float32 without loss; the view itself if it already is."""
    return rows_to_float32(tensor, ...) if needs_copy(tensor) else tensor.data


def rows_to_float32(tensor: Tensor, rows: Any) -> Float32:
    """Copy `rows` of a tensor (`...` for all) to a new aligned float32 array."""
    if tensor.dtype == "I8":
        return _dequantize(tensor, rows)
    data: np.ndarray[Any, Any] = tensor.data
    if not data.flags.aligned and rows is ...:
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
    if rows is ... and not tensor.data.flags.c_contiguous:  # keep the memory layout
        return _dequantize(tensor.transposed(), rows).T
    integers: np.ndarray[Any, Any] = tensor.data[rows]
    # Groups run along the input axis. Rows are only taken of embeddings, where it is the last.
    scale = tensor.scale[rows] if tensor.axis else tensor.scale
    length = integers.shape[tensor.axis]
    spread = np.repeat(scale, GROUP, axis=tensor.axis)
    whole = spread[:, :length] if tensor.axis else spread[:length]
    product: Float32 = np.multiply(integers, whole, dtype=np.float32)
    return product
