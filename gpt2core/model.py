"""GPT-2's forward pass as small pure functions named after the checkpoint's keys.

Formulas: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", as implemented
in the published code (https://github.com/openai/gpt-2, `src/model.py`).

Axes, used everywhere:
    n_tokens  new tokens of all sequences in a pass, concatenated
    n_kv      positions in the cache of one sequence, including the new ones
    n_embd, n_head, n_inner, n_positions, vocab_size   as in `GPT2Config`
    head_dim = n_embd / n_head
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpt2core.config import GPT2Config
from gpt2core.kernels import Float32, linear, unembed
from gpt2core.weights import MLP, Attention, Block, Norm, Weights

# Rows of prefill in one pass: keeps attention scores below n_head * 256 * n_positions floats
# (26 MB for gpt2-xl) for prompts of any length.
PREFILL_ROWS = 256


class KVCache:
    """Keys and values of all layers for one sequence, preallocated for `capacity` positions.

    `keys`, `values`: float32 [n_layer, n_head, capacity, head_dim].
    """

    @staticmethod
    def nbytes(config: GPT2Config, capacity: int) -> int:
        """Bytes of a cache of `capacity` positions."""
        return 4 * 2 * config.n_layer * config.n_embd * capacity

    def __init__(self, config: GPT2Config, capacity: int) -> None:
        shape = (config.n_layer, config.n_head, capacity, config.head_dim)
        self.keys: Float32 = np.empty(shape, np.float32)
        self.values: Float32 = np.empty(shape, np.float32)
        self.capacity = capacity
        self.n_kv = 0
        """Number of positions in use."""


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


def _blocks(
    x: Float32,
    weights: Weights,
    config: GPT2Config,
    lengths: Sequence[int],
    caches: Sequence[KVCache],
    n_last: Sequence[int],
) -> Float32:
    """All blocks on x [n_tokens, n_embd], which the compiled kernels compute in one call.

    Returns the last `n_last` rows of each sequence, [sum(n_last), n_embd].
    """
    epsilon = config.layer_norm_epsilon
    activation = ACTIVATIONS[config.activation_function]
    masks = [causal_mask(length) for length in lengths]
    for i in range(config.n_layer):
        block: Block = weights.block(i)
        normed = layer_norm(x, block.ln_1, epsilon)
        if i < config.n_layer - 1:
            x += attention(normed, block.attn, i, caches, masks, lengths, lengths)
        else:
            ends = np.cumsum(lengths)
            rows = [np.arange(end - n, end) for end, n in zip(ends, n_last, strict=True)]
            x = x[np.concatenate(rows)]
            x += attention(normed, block.attn, i, caches, masks, lengths, n_last)
        x += feed_forward(layer_norm(x, block.ln_2, epsilon), block.mlp, activation)
    return x


def hidden_states(
    weights: Weights,
    config: GPT2Config,
    sequences: Sequence[Sequence[int]],
    caches: Sequence[KVCache],
    n_last: Sequence[int] | None = None,
) -> Float32:
    """Run one pass on the new ids of each sequence, which follow the positions in its cache.

    Returns [sum(n_last), n_embd] before `ln_f`: the last `n_last[0]` rows of the first sequence,
    then of the second, …; all rows without `n_last`. The last block computes only keys and values
    of the other rows.
    """
    lengths = [len(ids) for ids in sequences]
    n_last = lengths if n_last is None else n_last
    embedded = [
        weights.embed(np.asarray(ids), cache.n_kv)
        for ids, cache in zip(sequences, caches, strict=True)
    ]
    x = embedded[0] if len(embedded) == 1 else np.concatenate(embedded)
    if weights.native:
        x = weights.forward(x, lengths, caches, n_last)
    else:
        x = _blocks(x, weights, config, lengths, caches, n_last)
    for cache, length in zip(caches, lengths, strict=True):
        cache.n_kv += length
    return x


def unchecked_logits(weights: Weights, config: GPT2Config, x: Float32) -> Float32:
    """Hidden states [n_tokens, n_embd] -> [n_tokens, vocab_size]; NaN if weights are damaged."""
    if weights.native:
        from gpt2core.kernels import native

        normed = native.layer_norm(x, weights.ln_f, config.layer_norm_epsilon)
        return native.linear(normed, weights.lm_head)
    return unembed(layer_norm(x, weights.ln_f, config.layer_norm_epsilon), weights.lm_head)


def logits(weights: Weights, config: GPT2Config, x: Float32) -> Float32:
    """Hidden states [n_tokens, n_embd] -> [n_tokens, vocab_size].

    Raises:
        CheckpointError: a logit is NaN.
    """
    scores = unchecked_logits(weights, config, x)
    if np.isnan(scores.max()):  # NaN if any logit is: one pass, no second array
        raise weights.damaged_error()
    return scores


def greedy(
    weights: Weights, config: GPT2Config, x: Float32
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.bool_]]]:
    """Hidden states [n_tokens, n_embd] -> the most likely ids [n_tokens], and is_nan [n_tokens].

    Ties go to the lowest id. `is_nan` marks rows with NaN logits: their ids are meaningless.
    """
    if weights.native:
        from gpt2core.kernels import native

        normed = native.layer_norm(x, weights.ln_f, config.layer_norm_epsilon)
        return native.greedy(normed, weights.lm_head)
    scores = unchecked_logits(weights, config, x)
    ids = scores.argmax(axis=1)  # the first of equal scores, or the first NaN
    return ids, np.isnan(scores[np.arange(len(ids)), ids])


def all_logits(weights: Weights, config: GPT2Config, ids: Sequence[int]) -> Float32:
    """Logits of every position, [n_tokens, vocab_size]; the cache is discarded.

    Raises:
        CheckpointError: a logit is NaN.
    """
    cache = KVCache(config, len(ids))
    scores: Float32 = np.empty((len(ids), config.vocab_size), np.float32)
    for begin in range(0, len(ids), PREFILL_ROWS):
        rows = ids[begin : begin + PREFILL_ROWS]
        x = hidden_states(weights, config, [rows], [cache])
        scores[begin : begin + len(rows)] = logits(weights, config, x)
    return scores
