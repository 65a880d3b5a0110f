"""GPT-2's forward pass with the native (compiled) kernels. The tests compare them with NumPy.

Weights are read directly from the mapped file, at any alignment and in any precision. Results are
bit-identical for any number of rows and threads, any split of a prompt, and every instruction set:
see `_kernels.c`.
"""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2core.config import GPT2Config
from gpt2core.kernels import _kernels
from gpt2core.kernels.matrix import Float32, Matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpt2core.model import KVCache
    from gpt2core.weights import Norm, Weights

KINDS = {"F32": 0, "F16": 1, "BF16": 2, "I8": 3}
# Values of `enum activation` in the C file, by the names of `gpt2core.model.ACTIVATIONS`.
ACTIVATIONS = {
    "linear": 0,
    "gelu_new": 1,
    "gelu_pytorch_tanh": 1,
    "gelu_fast": 1,
    "gelu_accurate": 1,
    "gelu": 2,
    "gelu_python": 2,
    "quick_gelu": 3,
    "relu": 4,
    "relu2": 5,
    "silu": 6,
    "swish": 6,
    "sigmoid": 7,
    "tanh": 8,
}
_threads: int | None = None


def set_threads(n: int | None) -> None:
    """Set the number of threads of the kernels, for the whole process.

    None keeps an earlier setting, or uses one thread for each available CPU.
    """
    global _threads
    if n is None and _threads is not None:
        return
    _threads = usable_threads() if n is None else n
    _kernels.set_threads(_threads)


def usable_threads() -> int:
    """CPUs available to this process, by its affinity and its cgroup's CPU quota; at least 1.

    Quota: `cpu.max`, https://docs.kernel.org/admin-guide/cgroup-v2.html
    """
    usable = len(os.sched_getaffinity(0))
    try:
        with open("/proc/self/cgroup") as file:
            group = next(line[3:].strip() for line in file if line.startswith("0::"))
        for path in (f"/sys/fs/cgroup{group}/cpu.max", "/sys/fs/cgroup/cpu.max"):
            if os.path.exists(path):
                with open(path) as file:
                    quota, period = file.read().split()
                if quota != "max":
                    usable = min(usable, int(quota) // int(period))
                break
    except (OSError, ValueError, StopIteration):
        pass  # no readable quota
    return max(1, usable)


def handle(matrix: Matrix) -> "_kernels.Matrix":
    """The kernels' object for a matrix, created once."""
    if matrix.prepared is None:
        tensor = matrix.tensor
        n_in, n_out = tensor.data.shape
        columns = not tensor.data.T.flags.c_contiguous
        if not columns:
            tensor = tensor.transposed()
        scale = None if tensor.scale is None else np.ascontiguousarray(tensor.scale)
        matrix.prepared = _kernels.matrix(
            KINDS[tensor.dtype], columns, n_out, n_in, tensor.data, scale, matrix.bias
        )
    prepared: _kernels.Matrix = matrix.prepared
    return prepared


def linear(
    x: Float32, matrix: Matrix, activation: str = "linear", residual: Float32 | None = None
) -> Float32:
    """activation(x [n_tokens, n_in] @ matrix + bias) + residual -> [n_tokens, n_out]."""
    y: Float32 = np.empty((len(x), matrix.tensor.data.shape[1]), np.float32)
    _kernels.linear(handle(matrix), x, len(x), y, ACTIVATIONS[activation], residual)
    return y


def layer_norm(x: Float32, norm: "Norm", epsilon: float) -> Float32:
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]; same as `gpt2core.model.layer_norm`."""
    y: Float32 = np.empty_like(x)
    _kernels.layer_norm(x, len(x), x.shape[1], norm.weight, norm.bias, epsilon, y)
    return y


def greedy(x: Float32, matrix: Matrix) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The index of the largest output of each row, and which rows have NaN.

    x [n_tokens, n_in] -> ids int64 [n_tokens], is_nan bool [n_tokens].
    """
    ids, is_nan = np.empty(len(x), np.int64), np.empty(len(x), np.bool_)
    _kernels.greedy(handle(matrix), x, len(x), ids, is_nan)
    return ids, is_nan


class Forward:
    """All blocks of one model in one call; a call for each operation would be slower."""

    def __init__(self, weights: "Weights", config: GPT2Config) -> None:
        self._config = config
        blocks = [weights.block(i) for i in range(config.n_layer)]
        self._blocks = [
            (
                *block.ln_1,
                handle(block.attn.c_attn),
                handle(block.attn.c_proj),
                *block.ln_2,
                handle(block.mlp.c_fc),
                handle(block.mlp.c_proj),
                block.attn.scale,
            )
            for block in blocks
        ]

    def __call__(
        self,
        x: Float32,
        lengths: "Sequence[int]",
        caches: "Sequence[KVCache]",
        n_last: "Sequence[int]",
    ) -> Float32:
        """Run all blocks on x [n_tokens, n_embd] in place; append keys and values to the caches.

        Returns the last `n_last` rows of each sequence, [sum(n_last), n_embd], as a view of x.
        """
        config = self._config
        _kernels.forward(
            x,
            self._blocks,
            [
                (length, cache.n_kv, cache.keys, cache.values, last)
                for length, cache, last in zip(lengths, caches, n_last, strict=True)
            ],
            config.n_head,
            config.head_dim,
            config.n_inner,
            config.layer_norm_epsilon,
            ACTIVATIONS[config.activation_function],
        )
        return x[: sum(n_last)]
