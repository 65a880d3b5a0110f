"""The tensors of a checkpoint, arranged as the network uses them.

Matrices keep the layout and data type of their file: the kernels decide whether to convert them.
Layer norms, biases and embedded rows are float32.
"""

import contextlib
from _thread import allocate_lock, start_new_thread
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpt2core.config import GPT2Config
from gpt2core.errors import CheckpointError
from gpt2core.files.safetensors import Tensor
from gpt2core.kernels import Float32, Matrix, prepare
from gpt2core.kernels.matrix import needs_copy, rows_to_float32, to_float32

if TYPE_CHECKING:
    from gpt2core.kernels.native import Forward


class Norm(NamedTuple):
    """A layer norm: weight and bias [n_embd]."""

    weight: Float32
    bias: Float32


class Attention(NamedTuple):
    """`h.N.attn`: c_attn [n_embd, 3*n_embd], c_proj [n_embd, n_embd]."""

    c_attn: Matrix
    c_proj: Matrix
    scale: float
    """Of the attention scores: see `attention_scale`."""


class MLP(NamedTuple):
    """`h.N.mlp`: c_fc [n_embd, n_inner], c_proj [n_inner, n_embd]."""

    c_fc: Matrix
    c_proj: Matrix


class Block(NamedTuple):
    """`h.N`, one transformer block."""

    ln_1: Norm
    attn: Attention
    ln_2: Norm
    mlp: MLP


class Weights:
    """All weights of one model. Thread-safe: a race at worst creates a block twice."""

    def __init__(
        self, tensors: dict[str, Tensor], config: GPT2Config, *, native: bool = False
    ) -> None:
        self.native = native
        """Whether the compiled kernels are in use, not NumPy."""
        self._tensors = tensors
        self._config = config
        self._blocks: list[Block | None] = [None] * config.n_layer
        self._ln_f: Norm | None = None
        self._lm_head: Matrix | None = None
        self._head_lock = allocate_lock()  # it is too large to be converted twice
        self._ahead = False
        self._forward: Forward | None = None

    def block(self, i: int) -> Block:
        """Block `i` of n_layer."""
        block = self._blocks[i]
        if block is None:
            prefix = f"h.{i}."
            block = self._blocks[i] = Block(
                ln_1=self._norm(prefix + "ln_1"),
                attn=Attention(
                    self._matrix(prefix + "attn.c_attn"),
                    self._matrix(prefix + "attn.c_proj"),
                    attention_scale(self._config, i),
                ),
                ln_2=self._norm(prefix + "ln_2"),
                mlp=MLP(self._matrix(prefix + "mlp.c_fc"), self._matrix(prefix + "mlp.c_proj")),
            )
        return block

    def prepare_ahead(self) -> None:
        """Start a thread that copies or converts the weights, if they need it.

        The thread starts with `lm_head` and then takes the blocks from last to first, while the
        first forward pass takes them from first to last: they meet in the middle.
        """
        if self.native:
            return
        if not self._ahead and any(needs_copy(tensor) for tensor in self._tensors.values()):
            with contextlib.suppress(RuntimeError):  # no thread: the first pass prepares all blocks
                start_new_thread(self._prepare_backwards, ())
        self._ahead = True

    def embed(self, ids: np.ndarray[tuple[Any, ...], np.dtype[np.intp]], position: int) -> Float32:
        """Token plus position embeddings of `ids` [n_tokens], the first at `position`.

        Returns float32 [n_tokens, n_embd], a new array. Reads only the rows it needs, so a cold
        start does not load the whole table.
        """
        rows = rows_to_float32(self._tensors["wte.weight"], ids)
        rows += rows_to_float32(self._tensors["wpe.weight"], slice(position, position + len(ids)))
        return rows

    @property
    def ln_f(self) -> Norm:
        """The final layer norm."""
        if self._ln_f is None:
            self._ln_f = self._norm("ln_f")
        return self._ln_f

    @property
    def lm_head(self) -> Matrix:
        """Output embeddings [n_embd, vocab_size]; the token embeddings if they are tied."""
        if self._lm_head is None:
            with self._head_lock:
                if self._lm_head is None:
                    own = has_own_head(self._tensors, self._config)
                    tensor = self._tensors["lm_head.weight" if own else "wte.weight"]
                    head = Matrix(tensor.transposed())
                    if not self.native:
                        prepare(head)
                    self._lm_head = head
        return self._lm_head

    @property
    def forward(self) -> "Forward":
        """The compiled kernels' forward pass through all blocks."""
        if self._forward is None:
            from gpt2core.kernels.native import Forward

            self._forward = Forward(self, self._config)
        return self._forward

    def damaged_error(self) -> CheckpointError:
        """The error for logits that are NaN or infinite.

        It does not name the directory: a downloaded model is opened before it gets its final name.
        """
        return CheckpointError(
            "the logits are NaN or infinite: the weights are damaged; download the model again"
        )

    def _prepare_backwards(self) -> None:
        try:
            self.lm_head  # noqa: B018 (the property prepares it)
            for i in reversed(range(len(self._blocks))):
                if self._blocks[i] is not None:
                    return
                block = self.block(i)
                for matrix in (block.attn.c_attn, block.attn.c_proj, *block.mlp):
                    prepare(matrix)
        except MemoryError:
            return  # the forward pass runs into the same error and reports it

    def _norm(self, name: str) -> Norm:
        return Norm(
            to_float32(self._tensors[name + ".weight"]), to_float32(self._tensors[name + ".bias"])
        )

    def _matrix(self, name: str) -> Matrix:
        return Matrix(self._tensors[name + ".weight"], to_float32(self._tensors[name + ".bias"]))


def attention_scale(config: GPT2Config, layer: int) -> float:
    """Scale of the attention scores of block `layer`.

    1 / sqrt(head_dim), divided by (layer + 1) with `scale_attn_by_inverse_layer_idx`; 1 in place of
    1 / sqrt(head_dim) without `scale_attn_weights`.
    """
    scale = config.head_dim**-0.5 if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


def has_own_head(tensors: dict[str, Tensor], config: GPT2Config) -> bool:
    """Whether the output embeddings are a separate matrix, not the token embeddings."""
    return not config.tie_word_embeddings or _differ(tensors)


def _differ(tensors: dict[str, Tensor]) -> bool:
    """Whether a stored `lm_head` differs from the token embeddings.

    `transformers` 5 does not tie them if both are stored and differ, even if the configuration
    ties them. Reads both matrices, but only in the rare file that has both.
    """
    if "lm_head.weight" not in tensors or tensors["lm_head.weight"] is tensors["wte.weight"]:
        return False
    wte, lm_head = tensors["wte.weight"], tensors["lm_head.weight"]
    if wte.dtype != lm_head.dtype or not np.array_equal(wte.data, lm_head.data):
        return True
    # A row that is a multiple of the other has equal integers and different scales.
    if wte.scale is None or lm_head.scale is None:
        return False
    return not np.array_equal(wte.scale, lm_head.scale)
