"""`config.json` of a GPT-2 checkpoint, checked: what is not implemented is refused by name.

Field names and defaults are those of Hugging Face's `GPT2Config`.
"""

import json
import os
import stat
from collections.abc import Mapping
from typing import Any, NamedTuple

from gpt2core.errors import ConfigError

# Names that `transformers` uses for the functions in `gpt2core.model.ACTIVATIONS`.
ACTIVATION_NAMES = (
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_fast",
    "gelu_accurate",
    "gelu",
    "gelu_python",
    "quick_gelu",
    "relu",
    "relu2",
    "silu",
    "swish",
    "sigmoid",
    "tanh",
    "linear",
)

# A configuration that sets one of these to anything else describes a different network.
_ONLY: dict[str, tuple[object, ...]] = {
    "model_type": ("gpt2",),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "quantization_config": (None,),
}
# The names that `transformers` takes for the same fields (its `attribute_map`).
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
# No GPT-2 comes near: hostile numbers stay out of arithmetic and loops.
_MAX_SIZE = 1 << 24
_MAX_LAYERS = 4096


class GPT2Config(NamedTuple):
    """The shape of one GPT-2. Immutable; build it with `from_dict` or `from_file`."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int = 3072
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_ids: tuple[int, ...] = (50256,)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], file: str = "") -> "GPT2Config":
        """Check the fields of a `config.json`; `file` is only named in errors.

        Raises:
            ConfigError: a value of the wrong type or size, or one that asks for a network that is
                not implemented; the error names the field.
        """
        for field, accepted in _ONLY.items():
            if field in raw and raw[field] not in accepted:
                raise ConfigError(
                    f"{raw[field]!r} is not supported, only {accepted[0]!r}", file=file, field=field
                )

        fields = dict(raw)
        for alias, field in _ALIASES.items():
            if alias in raw and raw.get(field, raw[alias]) != raw[alias]:
                raise ConfigError(f"contradicts {field}", file=file, field=alias)
            if alias in raw:
                fields[field] = raw[alias]

        def size(field: str, default: int, most: int = _MAX_SIZE) -> int:
            value = fields.get(field, default)
            if type(value) is not int or not 1 <= value <= most:
                raise ConfigError(
                    f"{value!r} is not a whole number from 1 to {most}", file=file, field=field
                )
            return value

        def flag(field: str, default: bool) -> bool:
            value = raw.get(field, default)
            if type(value) is not bool:
                raise ConfigError(f"{value!r} is not true or false", file=file, field=field)
            return value

        n_embd, n_head = size("n_embd", 768), size("n_head", 12)
        if n_embd % n_head:
            raise ConfigError(
                f"{n_head} heads do not divide n_embd {n_embd}", file=file, field="n_head"
            )
        activation = raw.get("activation_function", "gelu_new")
        if activation not in ACTIVATION_NAMES:
            raise ConfigError(
                f"{activation!r} is not implemented; known: {', '.join(ACTIVATION_NAMES)}",
                file=file,
                field="activation_function",
            )
        epsilon = raw.get("layer_norm_epsilon", 1e-5)
        if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
            raise ConfigError(
                f"{epsilon!r} is not in [0, 1)", file=file, field="layer_norm_epsilon"
            )
        return cls(
            vocab_size=size("vocab_size", 50257),
            n_positions=size("n_positions", 1024),
            n_embd=n_embd,
            n_layer=size("n_layer", 12, _MAX_LAYERS),
            n_head=n_head,
            n_inner=4 * n_embd if raw.get("n_inner") is None else size("n_inner", 0),
            activation_function=activation,
            layer_norm_epsilon=float(epsilon),
            scale_attn_weights=flag("scale_attn_weights", True),
            scale_attn_by_inverse_layer_idx=flag("scale_attn_by_inverse_layer_idx", False),
            tie_word_embeddings=flag("tie_word_embeddings", True),
            bos_token_id=next(iter(_token_ids(raw, "bos_token_id", file)), None),
            eos_token_ids=_token_ids(raw, "eos_token_id", file),
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "GPT2Config":
        """Read `config.json`.

        Raises:
            ConfigError: the file cannot be read, is not a JSON object, or `from_dict` refuses it.
        """
        path = os.fspath(path)
        raw = read_json(path)
        return cls.from_dict(raw, file=path)


def read_json(path: str) -> dict[str, Any]:
    """The JSON object in a small file of a model directory.

    Raises:
        ConfigError: the file is missing, unreadable, no UTF-8, no JSON or no object.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for ever
            raise ConfigError("is not a regular file", file=path)
        with open(path, "rb") as file:
            raw = json.loads(file.read().decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError("is not JSON in UTF-8", file=path) from error
    if not isinstance(raw, dict):
        raise ConfigError(f"is a JSON {type(raw).__name__}, not an object", file=path)
    return raw


def _token_ids(raw: Mapping[str, Any], field: str, file: str) -> tuple[int, ...]:
    """One id, a list of ids or null, as `transformers` allows; () for null."""
    value = raw.get(field, 50256)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(v) is int and 0 <= v <= _MAX_SIZE for v in values):
        raise ConfigError(
            f"{value!r} is not a token id, a list of them or null", file=file, field=field
        )
    return tuple(values)
