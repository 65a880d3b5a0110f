# The definitions are in `_kernels.c`.
#
# Arrays are C-contiguous and float32 unless a comment says otherwise; `rows` is n_tokens. Matrices
# have n_in inputs and n_out outputs. Every function that computes may raise:
#     RuntimeError   `choose` has not selected kernels
#     ValueError     an array has another size or item size, or a number is out of range
#     TypeError      an argument has another type
#     MemoryError
from typing import Any, TypeAlias, final

Buffer: TypeAlias = Any  # `collections.abc.Buffer` since Python 3.12

@final
class Matrix: ...

# kind: a value of `native.KINDS`. data: [n_out, n_in], or [n_in, n_out] if columns is 1, in the
# type of the kind, at any alignment. scale: [n_out, ceil(n_in / GROUP)], for int8. bias: [n_out].
def matrix(
    kind: int,
    columns: int,
    n_out: int,
    n_in: int,
    data: Buffer,
    scale: Buffer | None,
    bias: Buffer | None,
    /,
) -> Matrix: ...

# Writes y [rows, n_out] = activation(x [rows, n_in] @ matrix + bias) + residual [rows, n_out].
# activation: a value of `native.ACTIVATIONS`.
def linear(
    matrix: Matrix,
    x: Buffer,
    rows: int,
    y: Buffer,
    activation: int,
    residual: Buffer | None,
    /,
) -> None: ...

# The index of the largest output of each row of x [rows, n_in], the lowest of equals; None for a
# row with a NaN. may_block: 1 if weights may have to be read from disk; then the GIL is released.
def greedy(matrix: Matrix, x: Buffer, rows: int, may_block: int, /) -> list[int | None]: ...

# Writes rows of a matrix with columns 0 to y [len(indices), n_in] as float32, without its bias;
# adds them to y if add is 1. may_block: as for `greedy`. ValueError: an index is not from 0 to
# n_out - 1.
def rows(matrix: Matrix, indices: list[int], y: Buffer, add: int, may_block: int, /) -> None: ...

# n uninitialized bytes. ValueError: n is negative. OverflowError: n does not fit into 64 bits.
def empty(n: int, /) -> bytearray: ...

# Writes y [rows, n] from x [rows, n], weight [n] and bias [n].
def layer_norm(
    x: Buffer, rows: int, n: int, weight: Buffer, bias: Buffer, epsilon: float, y: Buffer, /
) -> None: ...

# Applies the activation to x of any shape, in place.
def activate(x: Buffer, activation: int, /) -> None: ...

# One layer: qkv [rows, 3, n_head, head_dim] -> heads [sum of n_last, n_head, head_dim]. sequences:
# (rows, n_past, keys, values, n_last), keys and values [n_head, capacity, head_dim], which get the
# new ones; the result is computed for the last n_last rows of each sequence. ValueError: n_past +
# rows exceeds the capacity, or n_last exceeds rows.
def attention(
    qkv: Buffer,
    heads: Buffer,
    sequences: list[tuple[int, int, Buffer, Buffer, int]],
    n_head: int,
    head_dim: int,
    scale: float,
    /,
) -> None: ...

# All blocks on x [rows, n_embd], in place; afterwards x begins with the n_last rows of each
# sequence, and its other rows are undefined. blocks: (ln_1 weight, bias, c_attn, c_proj, ln_2
# weight, bias, c_fc, c_proj, scale). sequences: as for `attention`, but keys and values are
# [n_layer, n_head, capacity, head_dim]. may_block: as for `greedy`.
def forward(
    x: Buffer,
    blocks: list[tuple[Buffer, Buffer, Matrix, Matrix, Buffer, Buffer, Matrix, Matrix, float]],
    sequences: list[tuple[int, int, Buffer, Buffer, int]],
    n_head: int,
    head_dim: int,
    n_inner: int,
    epsilon: float,
    activation: int,
    may_block: int,
    /,
) -> None: ...

# Selects kernels by instruction set, or the fastest that this processor supports; returns the name,
# or None if it supports none of them.
def choose(name: str | None, /) -> str | None: ...

# ValueError: n is less than 1.
def set_threads(n: int, /) -> None: ...
