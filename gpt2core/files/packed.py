"""`packed.safetensors`: weights in the order in which they are read, aligned to 64 bytes.

An ordinary safetensors file. Tensor names are those of GPT-2's code (`h.0.mlp.c_fc.bias`). Padding
tensors named `__pad__.N` keep the alignment, because the format does not allow gaps. `__metadata__`
has the texts of `config.json` (`config`) and `generation_config.json` (`generation_config`), the
precision, the digests of the input files (`source`), and samples of the raw weights (`samples`, see
`samples.record_sample`).

Matrices are stored as [n_out, n_in], so that the weights of one output are contiguous. Those that
GPT-2's code has as [n_in, n_out] are transposed and named `h.0.mlp.c_proj.weight.T`.

Precision: `f32`; `bf16`, matrices as bfloat16; `int8`, matrices as integers q with a float32
`NAME.scale` [n_out, n_in / GROUP] for each `GROUP` of them along a row: weight = q * scale.
Biases, layer norms and position embeddings are always float32.
"""

import os

from gpt2core.config import GPT2Config, parse_json
from gpt2core.errors import CheckpointError, ConfigError, PackedFormatError
from gpt2core.files.checkpoint import expected_shapes
from gpt2core.files.names import PACKED_FORMAT
from gpt2core.files.safetensors import Tensor, open_with_metadata
from gpt2core.startup.slim_typing import Literal, NamedTuple

ALIGNMENT = 64  # a cache line, and the widest vector register
GROUP = 64
PAD = "__pad__."
SCALE = ".scale"
TRANSPOSED = ".T"
Precision = Literal["f32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "int8")
_MATRIX_DTYPE = {"f32": "F32", "bf16": "BF16", "int8": "I8"}


def is_matrix(name: str) -> bool:
    """Whether a tensor is a matrix, which `bf16` and `int8` convert."""
    return name in ("wte.weight", "lm_head.weight") or (
        name.startswith("h.")
        and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    )


def stored_name(name: str) -> str:
    """The name of a tensor in the file: transposed matrices have a suffix."""
    return name + TRANSPOSED if is_matrix(name) and name.startswith("h.") else name


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scales of a matrix [n_out, n_in]: one for each `GROUP` weights of a row."""
    return *shape[:-1], -(-shape[-1] // GROUP)


def reading_order(config: GPT2Config, *, has_head: bool) -> list[str]:
    """Names of all tensors in the order in which a forward pass reads them.

    The token embeddings come last: a pass reads a few of their rows at its start and, if they are
    tied to the output embeddings, all of them at its end.
    """
    names = [*expected_shapes(config)]
    head = ["lm_head.weight"] if has_head else []
    names = [name for name in names if name not in ("wte.weight", "lm_head.weight")]
    return [*names, *head, "wte.weight"]


class Packed(NamedTuple):
    """An open packed file."""

    config: GPT2Config
    precision: Precision
    tensors: dict[str, Tensor]
    """By their names in GPT-2's code."""
    metadata: dict[str, str]


def open_packed(path: str | os.PathLike[str]) -> Packed:
    """Map a packed file.

    Raises:
        PackedFormatError: another version packed it.
        CheckpointError: the file is missing or invalid; a tensor is missing, misaligned, or has the
            wrong shape or type.
        ConfigError: its configuration is invalid.
    """
    path = os.fspath(path)
    tensors, metadata = open_with_metadata(path)
    if metadata.get("format") != PACKED_FORMAT:
        found = ascii(metadata.get("format"))[:40]
        raise PackedFormatError(
            f"has the format {found}, not {PACKED_FORMAT}: pack the model again", file=path
        )
    precision = metadata.get("precision")
    if precision not in PRECISIONS:
        raise CheckpointError(
            f"has precision {ascii(precision)[:40]}, not one of {', '.join(PRECISIONS)}", file=path
        )
    generation = metadata.get("generation_config")
    try:
        fields = parse_json(metadata["config"], path)
        generation_fields = None if generation is None else parse_json(generation, path)
    except (KeyError, ConfigError) as error:
        raise CheckpointError("has no valid configuration", file=path) from error
    config = GPT2Config.from_dict(fields, path, generation_fields)
    shapes = dict(expected_shapes(config))
    if "lm_head.weight" in tensors:
        shapes["lm_head.weight"] = shapes["wte.weight"]
    selected = {}
    for name, shape in shapes.items():
        dtype = _MATRIX_DTYPE[precision] if is_matrix(name) else "F32"
        stored = stored_name(name)
        if stored != name:
            shape = shape[::-1]
        tensor = _checked(tensors, stored, dtype, shape, path)
        if dtype == "I8":
            scale = _checked(tensors, stored + SCALE, "F32", scale_shape(shape), path)
            tensor = tensor._replace(scale=scale, axis=1)
        selected[name] = tensor.transposed() if stored != name else tensor
    return Packed(config, precision, selected, metadata)


def _checked(
    tensors: dict[str, Tensor], name: str, dtype: str, shape: tuple[int, ...], path: str
) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise CheckpointError("is missing", file=path, tensor=name)
    if tensor.dtype != dtype or tensor.shape != shape:
        raise CheckpointError(
            f"is {tensor.dtype} {list(tensor.shape)} instead of {dtype} {list(shape)}",
            file=path,
            tensor=name,
        )
    if not tensor.is_aligned:
        raise CheckpointError("is misaligned: pack the model again", file=path, tensor=name)
    return tensor
