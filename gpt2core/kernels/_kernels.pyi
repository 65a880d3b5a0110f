# The functions are documented at their definitions in `_kernels.c`.
from collections.abc import Sequence
from typing import Any, TypeAlias, final

Buffer: TypeAlias = Any  # `collections.abc.Buffer` since Python 3.12

@final
class Matrix: ...

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
def linear(
    matrix: Matrix,
    x: Buffer,
    rows: int,
    y: Buffer,
    activation: int,
    residual: Buffer | None,
    /,
) -> None: ...
def greedy(matrix: Matrix, x: Buffer, rows: int, ids: Buffer, is_nan: Buffer, /) -> None: ...
def layer_norm(
    x: Buffer, rows: int, n: int, weight: Buffer, bias: Buffer, epsilon: float, y: Buffer, /
) -> None: ...
def activate(x: Buffer, activation: int, /) -> None: ...
def attention(
    qkv: Buffer,
    heads: Buffer,
    sequences: Sequence[tuple[int, int, Buffer, Buffer]],
    n_head: int,
    head_dim: int,
    scale: float,
    /,
) -> None: ...
def forward(
    x: Buffer,
    blocks: Sequence[tuple[Buffer, Buffer, Matrix, Matrix, Buffer, Buffer, Matrix, Matrix, float]],
    sequences: Sequence[tuple[int, int, Buffer, Buffer]],
    n_head: int,
    head_dim: int,
    n_inner: int,
    epsilon: float,
    activation: int,
    /,
) -> None: ...
def choose(name: str | None, /) -> str | None: ...
def set_threads(n: int, /) -> None: ...
