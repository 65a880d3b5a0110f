"""`config.json` of a GPT-2 checkpoint, validated: unsupported features raise an error by field.

Field names and defaults are those of Hugging Face's `GPT2Config`. Generation settings come from
`generation_config.json` or, if there is no such file, from `config.json`.
"""

import json
import os
import stat
from collections.abc import Mapping

from gpt2core.errors import ConfigError
from gpt2core.files.names import GENERATION_FILE
from gpt2core.sampling import RANGES, describe_range
from gpt2core.startup.slim_typing import Any, NamedTuple

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

# Any other value of these fields describes a different network.
_SUPPORTED_VALUES: dict[str, tuple[object, ...]] = {
    "model_type": ("gpt2",),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "quantization_config": (None,),
}
# Alternative names that `transformers` accepts for the same fields (its `attribute_map`).
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
# Unsupported fields that change the output of greedy decoding, with the values that leave it
# unchanged (`GenerationConfig` and `_get_logits_processor` of `transformers` 5.24). So does null.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "sequence_bias": ([], {}),
    "stop_strings": ([],),
    "suppress_tokens": ([],),
    "token_healing": (False,),
    "watermarking_config": (),
}
# Far above any GPT-2: keeps hostile numbers out of arithmetic and loops.
_MAX_SIZE = 1 << 24
_MAX_LAYERS = 4096


class GPT2Config(NamedTuple):
    """The shape of a GPT-2 network. Immutable; create it with `from_dict` or `from_file`."""

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
    repetition_penalty: float = 1.0
    """Default for prompts that do not set one; see `gpt2core.sampling.Sampling`."""
    no_repeat_ngram_size: int = 0

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @classmethod
    def from_dict(
        cls,
        raw: Mapping[str, Any],
        file: str = "",
        generation: Mapping[str, Any] | None = None,
    ) -> "GPT2Config":
        """Validate the fields of a `config.json`. `file` is only used in error messages.

        `generation` holds the fields of a `generation_config.json`. It replaces all generation
        fields of `raw`: `{}` means no end-of-text token.

        Raises:
            ConfigError: a value has the wrong type or size, or selects a network or a decoding
                feature that is not implemented. The error names the field.
        """
        for field, accepted in _SUPPORTED_VALUES.items():
            if field in raw and raw[field] not in accepted:
                raise ConfigError(
                    f"is {_preview(raw[field])}; only {accepted[0]!r} is supported",
                    file=file,
                    field=field,
                )

        fields = dict(raw)
        for alias, field in _ALIASES.items():
            if alias in raw and raw.get(field, raw[alias]) != raw[alias]:
                raise ConfigError(
                    f"is {_preview(raw[alias])} but {field} is {_preview(raw[field])}: remove one"
                    " of them",
                    file=file,
                    field=alias,
                )
            if alias in raw:
                fields[field] = raw[alias]

        def size(field: str, default: int, maximum: int = _MAX_SIZE) -> int:
            value = fields.get(field, default)
            if type(value) is not int or not 1 <= value <= maximum:
                raise ConfigError(
                    f"is {_preview(value)}, not an integer from 1 to {maximum}",
                    file=file,
                    field=field,
                )
            return value

        def flag(field: str, default: bool) -> bool:
            value = raw.get(field, default)
            if type(value) is not bool:
                raise ConfigError(
                    f"is {_preview(value)}, not true or false", file=file, field=field
                )
            return value

        n_embd, n_head = size("n_embd", 768), size("n_head", 12)
        if n_embd % n_head:
            raise ConfigError(
                f"is {n_head}, which does not divide n_embd, {n_embd}", file=file, field="n_head"
            )
        activation = raw.get("activation_function", "gelu_new")
        if activation not in ACTIVATION_NAMES:
            raise ConfigError(
                f"is {_preview(activation)}, not one of {', '.join(ACTIVATION_NAMES)}",
                file=file,
                field="activation_function",
            )
        epsilon = raw.get("layer_norm_epsilon", 1e-5)
        if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
            raise ConfigError(
                f"is {_preview(epsilon)}, not a number of at least 0 and less than 1",
                file=file,
                field="layer_norm_epsilon",
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
            **_generation_fields(raw, generation, file),
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "GPT2Config":
        """Read `config.json`, and `generation_config.json` from the same directory if it exists.

        Raises:
            ConfigError: a file cannot be read, is not a JSON object, or `from_dict` rejects it.
        """
        path = os.fspath(path)
        generation_path = os.path.join(os.path.dirname(path), GENERATION_FILE)
        generation = read_json(generation_path) if os.path.exists(generation_path) else None
        return cls.from_dict(read_json(path), path, generation)

    def is_same_network(self, other: "GPT2Config") -> bool:
        """Whether two configurations are equal except for their generation settings."""
        return self._without_generation() == other._without_generation()

    def _without_generation(self) -> "GPT2Config":
        names = ("bos_token_id", "eos_token_ids", "repetition_penalty", "no_repeat_ngram_size")
        return self._replace(**{name: self._field_defaults[name] for name in names})


def read_json(path: str) -> dict[str, Any]:
    """Read a small file of a model directory as a JSON object.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8 or not a JSON object.
    """
    return parse_json(read_text(path), path)


def read_text(path: str) -> str:
    """Read a small text file of a model directory.

    Raises:
        ConfigError: the file is missing, unreadable or not UTF-8.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would block
            raise ConfigError("is not a regular file", file=path)
        with open(path, "rb") as file:
            return file.read().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start})", file=path) from error


def parse_json(text: str, file: str) -> dict[str, Any]:
    """Parse a JSON object. `file` is only used in error messages.

    Raises:
        ConfigError: `text` is not a JSON object.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not valid JSON ({error})", file=file) from error
    if not isinstance(raw, dict):
        raise ConfigError(f"is a JSON {type(raw).__name__}, not an object", file=file)
    return raw


def _generation_fields(
    raw: Mapping[str, Any], generation: Mapping[str, Any] | None, file: str
) -> dict[str, Any]:
    """Generation settings from the file that takes precedence. Unsupported fields raise.

    Beams, lengths and sampling defaults have no effect on greedy decoding and are ignored.
    """
    default: int | None = 50256
    if generation is not None:
        file = os.path.join(os.path.dirname(file), GENERATION_FILE)
        raw, default = generation, None
    for field, neutral in _UNSUPPORTED.items():
        value = raw.get(field)
        if value is None or value in neutral:
            continue
        if neutral == (0,) and isinstance(value, (int, float)) and value < 0:
            continue
        raise ConfigError(
            f"is {_preview(value)}, which changes the output and is not supported: remove the"
            " field",
            file=file,
            field=field,
        )
    return {
        "bos_token_id": next(iter(_token_ids(raw, "bos_token_id", file, default)), None),
        "eos_token_ids": _token_ids(raw, "eos_token_id", file, default),
    } | _penalties(raw, file)


def _penalties(raw: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The model's penalties that differ from the defaults. A negative size means none."""
    found: dict[str, Any] = {}
    for field, neutral in (("repetition_penalty", 1), ("no_repeat_ngram_size", 0)):
        value = raw.get(field)
        if value is None or value == neutral:
            continue
        kind, minimum, maximum = RANGES[field]
        accepted = (int,) if kind is int else (int, float)
        if type(value) not in accepted or value > maximum or (value < minimum and neutral):
            raise ConfigError(
                f"is {_preview(value)}, not {describe_range(field)}", file=file, field=field
            )
        found[field] = max(value, minimum) if kind is float else max(value, 0)
    return found


def _preview(value: object) -> str:
    """`repr(value)` for an error message, truncated."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _token_ids(
    raw: Mapping[str, Any], field: str, file: str, default: int | None
) -> tuple[int, ...]:
    """One id, a list of ids or null, as in `transformers`; () for null."""
    value = raw.get(field, default)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(v) is int and 0 <= v <= _MAX_SIZE for v in values):
        raise ConfigError(
            f"is {_preview(value)}, not a token id, a list of token ids or null",
            file=file,
            field=field,
        )
    return tuple(values)
