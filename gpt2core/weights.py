"""The tensors of a checkpoint, arranged as the network uses them.

Matrices keep the layout and data type of their file: the kernels decide whether to convert them.
Layer norms and biases are float32.
"""

from collections.abc import Callable

from gpt2core.config import GPT2Config
from gpt2core.files.safetensors import Tensor
from gpt2core.kernels.matrix import Matrix
from gpt2core.startup.slim_typing import Any, NamedTuple

_COMPARED_BYTES = 1 << 20


class Norm(NamedTuple):
    """A layer norm: weight and bias, float32 [n_embd], as arrays or other buffers."""

    weight: Any
    bias: Any


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
    """All weights of one model. Thread-safe: a race at worst creates a block twice.

    `to_float32` converts layer norms and biases to aligned float32, if they are not.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        config: GPT2Config,
        to_float32: Callable[[Tensor], Any],
    ) -> None:
        self.tensors = tensors
        self._config = config
        self._to_float32 = to_float32
        self._blocks: list[Block | None] = [None] * config.n_layer
        self._ln_f: Norm | None = None
        self._lm_head: Matrix | None = None

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

    def has_block(self, i: int) -> bool:
        """Whether block `i` has been created."""
        return self._blocks[i] is not None

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
            own = has_own_head(self.tensors, self._config)
            tensor = self.tensors["lm_head.weight" if own else "wte.weight"]
            self._lm_head = Matrix(tensor.transposed())
        return self._lm_head

    def _norm(self, name: str) -> Norm:
        return Norm(
            self._to_float32(self.tensors[name + ".weight"]),
            self._to_float32(self.tensors[name + ".bias"]),
        )

    def _matrix(self, name: str) -> Matrix:
        return Matrix(
            self.tensors[name + ".weight"], self._to_float32(self.tensors[name + ".bias"])
        )


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
    if wte.dtype != lm_head.dtype or not _same_bytes(wte.raw, lm_head.raw):
        return True
    # A row that is a multiple of the other has equal integers and different scales.
    if wte.scale is None or lm_head.scale is None:
        return False
    return not _same_bytes(wte.scale.raw, lm_head.scale.raw)


def _same_bytes(a: memoryview, b: memoryview) -> bool:
    """Whether two memoryviews of the same size are equal; comparing them directly is slow."""
    pieces = (slice(i, i + _COMPARED_BYTES) for i in range(0, len(a), _COMPARED_BYTES))
    return all(bytes(a[piece]) == bytes(b[piece]) for piece in pieces)
