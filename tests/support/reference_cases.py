"""Random models in unusual shapes, to compare with `transformers`.

`test_reference.py` runs `transformers`; other tests use the stored outputs in
`fixtures/reference.npz`, written by `scripts/make_fixtures.py`.
"""

from typing import Any, NamedTuple

from tests.support.models import small_config


class Case(NamedTuple):
    name: str
    config: dict[str, Any]
    seed: int


CASES = (
    Case("one-layer-one-head", small_config(n_layer=1, n_head=1, n_embd=16, vocab_size=101), 1),
    Case("deep-and-narrow", small_config(n_layer=9, n_head=2, n_embd=10, vocab_size=53), 2),
    Case("wide-heads-erf-gelu", small_config(n_head=2, n_embd=66, activation_function="gelu"), 3),
    Case("n-inner-relu", small_config(n_inner=37, activation_function="relu", vocab_size=211), 4),
    Case("unscaled-attention", small_config(scale_attn_weights=False, n_embd=21), 5),
    Case("inverse-layer-scaling", small_config(n_layer=5, scale_attn_by_inverse_layer_idx=True), 6),
    Case("untied-silu", small_config(tie_word_embeddings=False, activation_function="silu"), 7),
    Case(
        "quick-gelu-large-epsilon",
        small_config(activation_function="quick_gelu", layer_norm_epsilon=1e-2),
        8,
    ),
    Case("many-heads-long-context", small_config(n_head=12, n_embd=48, n_positions=257), 9),
    Case(
        "tanh-gelu-head-of-one",
        small_config(n_head=24, activation_function="gelu_pytorch_tanh"),
        10,
    ),
)


def prompt_ids(case: Case, length: int) -> list[int]:
    """A fixed prompt in the vocabulary of the case."""
    return [(7 * i * i + 3 * i + case.seed) % case.config["vocab_size"] for i in range(length)]


def without_end(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without an end-of-text token, which would end the generation."""
    return config | {"bos_token_id": None, "eos_token_id": None}
