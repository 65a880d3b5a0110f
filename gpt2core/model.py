"""GPT-2's forward pass with NumPy: small pure functions named after the checkpoint's keys.

`NumPyForward` puts them together. It is the reference for the compiled kernels.

Formulas: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", as implemented
in the published code (https://github.com/openai/gpt-2, `src/model.py`).

Axes, used everywhere:
    n_tokens  new tokens of all sequences in a pass, concatenated
    n_kv      positions in the cache of one sequence, including the new ones
    n_embd, n_head, n_inner, n_positions, vocab_size   as in `GPT2Config`
    head_dim = n_embd / n_head
"""

import contextlib
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Sequence

import numpy as np

from gpt2core.config import GPT2Config
from gpt2core.files.safetensors import Tensor
from gpt2core.forward import PREFILL_ROWS, ForwardPass, KVCache, damaged_error
from gpt2core.kernels.reference import (
    Float32,
    linear,
    needs_copy,
    prepare,
    rows_to_float32,
    set_threads,
    to_float32,
    unembed,
)
from gpt2core.weights import MLP, Attention, Norm, Weights


def gelu_new(x: Float32) -> Float32:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), Hendrycks & Gimpel 2016, eq. 2."""
    inner = x * x
    inner *= 0.044715
    inner += 1.0
    inner *= x
    inner *= 0.7978845608028654
    np.tanh(inner, out=inner)
    inner += 1.0
    inner *= x
    inner *= 0.5
    return inner


def gelu(x: Float32) -> Float32:
    """x Phi(x), with the error function of Abramowitz & Stegun 7.1.26 (|error| <= 1.5e-7)."""
    z = np.abs(x).astype(np.float64) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * z)
    series = 0.254829592 + t * (
        -0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
    )
    erf = np.copysign(1.0 - t * series * np.exp(-z * z), x)
    result: Float32 = (0.5 * x * (1.0 + erf)).astype(np.float32)
    return result


def _sigmoid(x: Float32) -> Float32:
    # With tanh: exp(-x) overflows for large negative x.
    half: Float32 = np.tanh(0.5 * x) * np.float32(0.5) + np.float32(0.5)
    return half


def _quick_gelu(x: Float32) -> Float32:
    return x * _sigmoid(np.float32(1.702) * x)


def _relu(x: Float32) -> Float32:
    return np.maximum(x, np.float32(0))


def _silu(x: Float32) -> Float32:
    return x * _sigmoid(x)


ACTIVATIONS: dict[str, Callable[[Float32], Float32]] = {
    "gelu_new": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "gelu_fast": gelu_new,
    "gelu_accurate": gelu_new,
    "gelu": gelu,
    "gelu_python": gelu,
    "quick_gelu": _quick_gelu,
    "relu": _relu,
    "relu2": lambda x: np.square(_relu(x)),
    "silu": _silu,
    "swish": _silu,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "linear": lambda x: x,
}


def layer_norm(x: Float32, norm: Norm, epsilon: float) -> Float32:
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]: rows to mean 0 and variance 1, then affine."""
    centered: Float32 = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("ij,ij->i", centered, centered)[:, None] / np.float32(x.shape[-1])
    centered /= np.sqrt(variance + np.float32(epsilon))
    centered *= norm.weight
    centered += norm.bias
    return centered


def softmax(x: Float32) -> Float32:
    """Softmax over the last axis of x [..., n], in place; returns x."""
    x -= x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def causal_mask(length: int) -> Float32 | None:
    """[length, length] to add to the scores between new positions; None if there is only one.

    Positions already in the cache are visible to all new ones and need no mask.
    """
    if length == 1:
        return None
    positions = np.arange(length)
    later = positions[:, None] < positions
    return np.where(later, np.float32(-np.inf), np.float32(0))


def attention(
    x: Float32,
    attn: Attention,
    layer: int,
    caches: Sequence[KVCache],
    masks: Sequence[Float32 | None],
    lengths: Sequence[int],
    n_last: Sequence[int],
) -> Float32:
    """x [n_tokens, n_embd] -> [sum(n_last), n_embd]; appends block `layer`'s keys and values.

    The first `lengths[0]` rows of `x` belong to the sequence of `caches[0]`, and so on: sequences
    share the products with the weights, and each attends only to itself. The result is computed for
    the last `n_last` rows of each.
    """
    n_tokens, n_embd = x.shape
    n_head, _, head_dim = caches[0].keys[layer].shape
    qkv = linear(x, attn.c_attn).reshape(n_tokens, 3, n_head, head_dim)
    qkv[:, 0] *= np.float32(attn.scale)
    heads: Float32 = np.empty((sum(n_last), n_head, head_dim), np.float32)
    begin = out = 0
    for cache, mask, length, n_rows in zip(caches, masks, lengths, n_last, strict=True):
        end, n_past = begin + length, cache.n_kv
        n_kv = n_past + length
        keys, values = cache.keys[layer], cache.values[layer]
        query, keys[:, n_past:n_kv], values[:, n_past:n_kv] = qkv[begin:end].transpose(1, 2, 0, 3)
        begin = end
        if not n_rows:
            continue
        # [n_head, n_rows, head_dim] @ [n_head, head_dim, n_kv] -> [n_head, n_rows, n_kv]
        scores = np.matmul(query[:, -n_rows:], keys[:, :n_kv].transpose(0, 2, 1))
        if mask is not None:
            scores[:, :, n_past:] += mask[-n_rows:]
        # [n_head, n_rows, n_kv] @ [n_head, n_kv, head_dim] -> [n_head, n_rows, head_dim]
        rows = np.matmul(softmax(scores), values[:, :n_kv])
        heads[out : out + n_rows] = rows.transpose(1, 0, 2)
        out += n_rows
    return linear(heads.reshape(out, n_embd), attn.c_proj)


def feed_forward(x: Float32, mlp: MLP, activation: Callable[[Float32], Float32]) -> Float32:
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]."""
    return linear(activation(linear(x, mlp.c_fc)), mlp.c_proj)


def _no_warnings() -> np.errstate:
    """Ignore invalid values and overflow in products.

    OpenBLAS set these flags for products of finite numbers in 2 of about 400 processes, for an
    unknown reason. Damaged weights give NaN logits, which are reported.
    """
    return np.errstate(invalid="ignore", over="ignore")


class NumPyForward:
    """The forward pass of one model with NumPy; implements `forward.ForwardPass`."""

    is_native = False

    @staticmethod
    def set_threads(n: int | None) -> None:
        """Set the number of threads of NumPy's OpenBLAS; None does not change it."""
        if n is not None:
            set_threads(n)

    def __init__(self, tensors: dict[str, Tensor], config: GPT2Config) -> None:
        self.weights = Weights(tensors, config, to_float32)
        self._config = config
        self._head_lock = allocate_lock()  # it is too large to be converted twice
        self._ahead = False

    def prepare_ahead(self) -> None:
        """Start a thread that copies or converts the weights, if they need it.

        The thread starts with `lm_head` and then takes the blocks from last to first, while the
        first forward pass takes them from first to last: they meet in the middle.
        """
        tensors = self.weights.tensors.values()
        if not self._ahead and any(needs_copy(tensor) for tensor in tensors):
            with contextlib.suppress(RuntimeError):  # no thread: the first pass prepares all blocks
                start_new_thread(self._prepare_backwards, ())
        self._ahead = True

    def after_restore(self) -> None:
        """Do nothing: NumPy's products never keep the GIL."""

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of up to `capacity` positions."""
        return KVCache(self._config, capacity, lambda shape: np.empty(shape, np.float32))

    def hidden_states(
        self,
        sequences: Sequence[Sequence[int]],
        caches: Sequence[KVCache],
        n_last: Sequence[int] | None = None,
    ) -> Float32:
        """See `forward.ForwardPass`."""
        config, weights = self._config, self.weights
        lengths = [len(ids) for ids in sequences]
        n_last = lengths if n_last is None else n_last
        x = np.concatenate(
            [self._embed(ids, cache.n_kv) for ids, cache in zip(sequences, caches, strict=True)]
        )
        masks = [causal_mask(length) for length in lengths]
        epsilon = config.layer_norm_epsilon
        activation = ACTIVATIONS[config.activation_function]
        with _no_warnings():
            for i in range(config.n_layer):
                block = weights.block(i)
                normed = layer_norm(x, block.ln_1, epsilon)
                if i < config.n_layer - 1:
                    x += attention(normed, block.attn, i, caches, masks, lengths, lengths)
                else:
                    ends = np.cumsum(lengths)
                    rows = [np.arange(end - n, end) for end, n in zip(ends, n_last, strict=True)]
                    x = x[np.concatenate(rows)]
                    x += attention(normed, block.attn, i, caches, masks, lengths, n_last)
                x += feed_forward(layer_norm(x, block.ln_2, epsilon), block.mlp, activation)
        for cache, length in zip(caches, lengths, strict=True):
            cache.n_kv += length
        return x

    def unchecked_logits(self, x: Float32) -> Float32:
        """See `forward.ForwardPass`."""
        with self._head_lock:
            head = self.weights.lm_head
            prepare(head)
        with _no_warnings():
            normed = layer_norm(x, self.weights.ln_f, self._config.layer_norm_epsilon)
            return unembed(normed, head)

    def greedy(self, x: Float32) -> list[int | None]:
        """See `forward.ForwardPass`."""
        scores = self.unchecked_logits(x)
        ids = scores.argmax(axis=1)  # the first of equal scores, or the first NaN
        is_nan = np.isnan(scores[np.arange(len(ids)), ids])
        return [None if bad else i for i, bad in zip(ids.tolist(), is_nan.tolist(), strict=True)]

    def _embed(self, ids: Sequence[int], position: int) -> Float32:
        """Token plus position embeddings of `ids`, the first at `position`: [n_tokens, n_embd].

        Reads only the rows it needs, so a cold start does not load the whole table.
        """
        tensors = self.weights.tensors
        rows = rows_to_float32(tensors["wte.weight"], np.asarray(ids))
        rows += rows_to_float32(tensors["wpe.weight"], slice(position, position + len(ids)))
        return rows

    def _prepare_backwards(self) -> None:
        weights = self.weights
        try:
            with self._head_lock:
                prepare(weights.lm_head)
            for i in reversed(range(self._config.n_layer)):
                if weights.has_block(i):
                    return
                block = weights.block(i)
                for matrix in (block.attn.c_attn, block.attn.c_proj, *block.mlp):
                    prepare(matrix)
        except MemoryError:
            return  # the forward pass runs into the same error and reports it


def all_logits(forward: ForwardPass, config: GPT2Config, ids: Sequence[int]) -> Float32:
    """Logits of every position, [n_tokens, vocab_size]; the cache is discarded.

    Raises:
        CheckpointError: a logit is NaN.
    """
    cache = forward.new_cache(len(ids))
    scores: Float32 = np.empty((len(ids), config.vocab_size), np.float32)
    for begin in range(0, len(ids), PREFILL_ROWS):
        rows = ids[begin : begin + PREFILL_ROWS]
        x = forward.hidden_states([rows], [cache])
        scores[begin : begin + len(rows)] = forward.unchecked_logits(x)
    if np.isnan(scores.max()):  # NaN if any logit is
        raise damaged_error()
    return scores
