"""GPT-2's forward pass with the native (compiled) kernels. The tests compare them with NumPy.

Weights are read directly from the mapped file, at any alignment and in any precision. Results are
bit-identical for any number of rows and threads, any split of a prompt, and every instruction set:
see `_kernels.c`.
"""

import os
from itertools import chain

from gpt2core.config import GPT2Config
from gpt2core.files.safetensors import Tensor
from gpt2core.forward import KVCache
from gpt2core.kernels import _kernels
from gpt2core.kernels.matrix import Matrix
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from gpt2core.weights import Norm, Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpt2core.kernels.reference import Float32

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
        n_in, n_out = tensor.shape
        scale = tensor.scale and tensor.scale.items
        columns = not tensor.is_transposed
        matrix.prepared = _kernels.matrix(
            KINDS[tensor.dtype], columns, n_out, n_in, tensor.items, scale, matrix.bias
        )
    prepared: _kernels.Matrix = matrix.prepared
    return prepared


def empty(shape: tuple[int, ...]) -> "memoryview[float]":
    """An uninitialized float32 array; no dimension may be 0."""
    n_bytes = 4
    for n in shape:
        n_bytes *= n
    return memoryview(_kernels.empty(n_bytes)).cast("f", shape)


def to_float32(tensor: Tensor) -> "memoryview[float]":
    """A vector as aligned float32 without loss; the view itself if it already is."""
    if tensor.dtype == "F32" and tensor.is_aligned:
        return tensor.items
    vector = empty(tensor.shape)
    row = _kernels.matrix(KINDS[tensor.dtype], 0, 1, tensor.shape[0], tensor.items, None, None)
    _kernels.rows(row, [0], vector, 0, 0)
    return vector


def linear(
    x: Any, matrix: Matrix, activation: str = "linear", residual: Any = None
) -> "memoryview[float]":
    """activation(x [n_tokens, n_in] @ matrix + bias) + residual -> [n_tokens, n_out]."""
    y = empty((len(x), matrix.tensor.shape[1]))
    _kernels.linear(handle(matrix), x, len(x), y, ACTIVATIONS[activation], residual)
    return y


def layer_norm(x: Any, norm: Norm, epsilon: float) -> "memoryview[float]":
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]; same as `gpt2core.model.layer_norm`."""
    y = empty((len(x), len(norm.weight)))
    _kernels.layer_norm(x, len(x), len(norm.weight), norm.weight, norm.bias, epsilon, y)
    return y


def greedy(x: Any, matrix: Matrix, may_block: bool = False) -> list[int | None]:
    """The index of the largest output of each row of x [n_tokens, n_in]; None if one is NaN.

    If `may_block`, the GIL is released: weights may have to be read from disk.
    """
    return _kernels.greedy(handle(matrix), x, len(x), may_block)


class NativeForward:
    """The forward pass of one model with the compiled kernels; implements `forward.ForwardPass`.

    All blocks are one call: a call for each operation would be slower.
    """

    is_native = True
    set_threads = staticmethod(set_threads)

    def __init__(self, tensors: dict[str, Tensor], config: GPT2Config) -> None:
        self.weights = Weights(tensors, config, to_float32)
        self._config = config
        self._blocks: list[Any] = []
        self._embeddings: list[_kernels.Matrix] = []
        # Until the first token, the threads of `prefetch` need the GIL to read weights.
        self._may_block = True

    def prepare_ahead(self) -> None:
        """Do nothing: the kernels read the weights as they are stored."""

    def after_restore(self) -> None:
        """See `forward.ForwardPass`."""
        self._may_block = True

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of up to `capacity` positions."""
        return KVCache(self._config, capacity, empty)

    def hidden_states(
        self,
        sequences: "Sequence[Sequence[int]]",
        caches: "Sequence[KVCache]",
        n_last: "Sequence[int] | None" = None,
    ) -> "memoryview[float]":
        """See `forward.ForwardPass`."""
        config = self._config
        if not self._blocks:
            self._prepare()
        lengths = [len(ids) for ids in sequences]
        n_last = lengths if n_last is None else n_last
        x = empty((sum(lengths), config.n_embd))
        spans = [range(c.n_kv, c.n_kv + n) for c, n in zip(caches, lengths, strict=True)]
        wte, wpe = self._embeddings
        _kernels.rows(wte, list(chain.from_iterable(sequences)), x, 0, self._may_block)
        _kernels.rows(wpe, list(chain.from_iterable(spans)), x, 1, self._may_block)
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
            self._may_block,
        )
        for cache, length in zip(caches, lengths, strict=True):
            cache.n_kv += length
        return x[: sum(n_last)]

    def greedy(self, x: Any) -> list[int | None]:
        """See `forward.ForwardPass`."""
        normed = layer_norm(x, self.weights.ln_f, self._config.layer_norm_epsilon)
        ids = greedy(normed, self.weights.lm_head, self._may_block)
        self._may_block = False
        return ids

    def unchecked_logits(self, x: Any) -> "Float32":
        """See `forward.ForwardPass`."""
        import numpy as np

        if self._may_block:
            self.greedy(x[:1])  # reads the output embeddings without the GIL
        normed = layer_norm(x, self.weights.ln_f, self._config.layer_norm_epsilon)
        return np.asarray(linear(normed, self.weights.lm_head))

    def _prepare(self) -> None:
        """Create the kernels' objects. Thread-safe: a race at worst creates them twice."""
        weights = self.weights
        wte, wpe = (weights.tensors[name] for name in ("wte.weight", "wpe.weight"))
        self._embeddings = [handle(Matrix(table.transposed())) for table in (wte, wpe)]
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
            for block in map(weights.block, range(self._config.n_layer))
        ]
