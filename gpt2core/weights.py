"""The tensors of a checkpoint as float32 arrays, each made ready when it is first used.

An aligned F32 tensor is the view on the file itself and costs nothing. F16, BF16 and quantized
integers are widened, and F32 that stands at an odd offset is copied (NumPy copies a misaligned
operand on *every* product, and the header of the published gpt2 ends at byte 14,291): layer by
layer, once, kept.
"""

from _thread import allocate_lock, start_new_thread
from typing import Any, NamedTuple

import numpy as np

from gpt2core.checkpoint import Tensor
from gpt2core.config import GPT2Config
from gpt2core.kernels import Float32
from gpt2core.packed import GROUP


class Affine(NamedTuple):
    """A layer norm [n] + [n], or GPT-2's `Conv1D`: weight [n_in, n_out], bias [n_out]."""

    weight: Float32
    bias: Float32


class Attention(NamedTuple):
    """`h.N.attn`: c_attn [n_embd, 3*n_embd], c_proj [n_embd, n_embd]."""

    c_attn: Affine
    c_proj: Affine


class MLP(NamedTuple):
    """`h.N.mlp`: c_fc [n_embd, n_inner], c_proj [n_inner, n_embd]."""

    c_fc: Affine
    c_proj: Affine


class Block(NamedTuple):
    """`h.N`, one transformer block."""

    ln_1: Affine
    attn: Attention
    ln_2: Affine
    mlp: MLP


class Weights:
    """All weights of one model. Threads may share them: the worst race widens a block twice."""

    def __init__(self, tensors: dict[str, Tensor], config: GPT2Config) -> None:
        self._tensors = tensors
        self._config = config
        self._head = ""  # the name of the output embeddings, once somebody has asked
        self._blocks: list[Block | None] = [None] * config.n_layer
        self._arrays: dict[str, Float32] = {}
        self._widening = allocate_lock()  # the embeddings are too large to be widened twice
        self._ahead = False

    def block(self, i: int) -> Block:
        """Block `i` of n_layer."""
        block = self._blocks[i]
        if block is None:
            at = f"h.{i}."
            block = self._blocks[i] = Block(
                ln_1=self._affine(at + "ln_1"),
                attn=Attention(self._affine(at + "attn.c_attn"), self._affine(at + "attn.c_proj")),
                ln_2=self._affine(at + "ln_2"),
                mlp=MLP(self._affine(at + "mlp.c_fc"), self._affine(at + "mlp.c_proj")),
            )
        return block

    def widen_ahead(self) -> None:
        """Begin to make ready, in a thread, what the first forward pass would wait for.

        The thread takes `lm_head` and then the blocks from the last to the first, while whoever
        uses the weights comes from the first: they meet in the middle. Without effect where the
        tensors are used as they lie in their file.
        """
        if not self._ahead and any(_needs_copy(tensor) for tensor in self._tensors.values()):
            start_new_thread(self._widen_backwards, ())
        self._ahead = True

    def embed(self, ids: np.ndarray[tuple[Any, ...], np.dtype[np.intp]], position: int) -> Float32:
        """Token plus position embeddings of `ids` [n_seq], the first at `position`; a new array.

        Reads just the rows it needs, so that the whole table is not waited for.
        """
        rows = _float32(self._tensors["wte.weight"], ids)
        rows += _float32(self._tensors["wpe.weight"], slice(position, position + len(ids)))
        return rows

    @property
    def ln_f(self) -> Affine:
        """The last layer norm."""
        return Affine(self._kept("ln_f.weight"), self._kept("ln_f.bias"))

    @property
    def lm_head(self) -> Float32:
        """Output embeddings [vocab_size, n_embd]; the token embeddings where they are tied."""
        if not self._head:
            own = has_own_head(self._tensors, self._config)
            self._head = "lm_head.weight" if own else "wte.weight"
        return self._kept(self._head)

    def _widen_backwards(self) -> None:
        try:
            self.lm_head  # noqa: B018 (makes it ready)
            for i in reversed(range(len(self._blocks))):
                if self._blocks[i] is not None:
                    return
                self.block(i)
        except MemoryError:
            return  # whoever needs the weights will meet it, and can report it

    def _affine(self, name: str) -> Affine:
        return Affine(widen(self._tensors[name + ".weight"]), widen(self._tensors[name + ".bias"]))

    def _kept(self, name: str) -> Float32:
        array = self._arrays.get(name)
        if array is None:
            with self._widening:
                array = self._arrays.get(name)
                if array is None:
                    array = self._arrays[name] = widen(self._tensors[name])
        return array


def has_own_head(tensors: dict[str, Tensor], config: GPT2Config) -> bool:
    """Whether the output embeddings are a matrix of their own and not the token embeddings."""
    return not config.tie_word_embeddings or _differ(tensors)


def _differ(tensors: dict[str, Tensor]) -> bool:
    """Whether a stored `lm_head` is another matrix than the token embeddings.

    `transformers` 5 does not tie two that are stored and differ, whatever the configuration says.
    Few files hold both; only for those this reads them.
    """
    if "lm_head.weight" not in tensors or tensors["lm_head.weight"] is tensors["wte.weight"]:
        return False
    wte, lm_head = tensors["wte.weight"], tensors["lm_head.weight"]
    return wte.dtype != lm_head.dtype or not np.array_equal(wte.data, lm_head.data)


def widen(tensor: Tensor) -> Float32:
    """One tensor as aligned float32, exactly: the view itself where it is that already."""
    return _float32(tensor, ...) if _needs_copy(tensor) else tensor.data


def _needs_copy(tensor: Tensor) -> bool:
    return tensor.dtype != "F32" or not tensor.data.flags.aligned


def _dequantized(tensor: Tensor, rows: Any) -> Float32:
    """`rows` of a quantized matrix: every integer times its group's scale."""
    assert tensor.scale is not None
    if rows is ... and not tensor.data.flags.c_contiguous:  # the result lies as the integers do
        return _dequantized(tensor.transposed(), rows).T
    integers: np.ndarray[Any, Any] = tensor.data[rows]
    # Groups lie along the input axis; only embeddings, whose axis is the last, give away rows.
    scale = tensor.scale[rows] if tensor.axis else tensor.scale
    length = integers.shape[tensor.axis]
    spread = np.repeat(scale, GROUP, axis=tensor.axis)
    whole = spread[:, :length] if tensor.axis else spread[:length]
    product: Float32 = np.multiply(integers, whole, dtype=np.float32)
    return product


def _float32(tensor: Tensor, rows: Any) -> Float32:
    """`rows` of a tensor as new, aligned float32."""
    if tensor.dtype == "I8":
        return _dequantized(tensor, rows)
    data: np.ndarray[Any, Any] = tensor.data
    if not data.flags.aligned and rows is ...:
        # As bytes, because NumPy moves misaligned numbers one by one.
        aligned = np.empty(data.shape, data.dtype)
        aligned.reshape(-1).view(np.uint8)[:] = data.reshape(-1).view(np.uint8)
    else:
        aligned = np.array(data[rows], copy=True)
    if tensor.dtype == "BF16":  # the upper half of a float32
        return (aligned.astype(np.uint32) << 16).view(np.float32)
    return aligned.astype(np.float32, copy=False)
