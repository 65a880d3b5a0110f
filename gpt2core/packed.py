"""`packed.safetensors`: a model's weights in the order they are read, every tensor at 64 bytes.

An ordinary safetensors file. Names are those of GPT-2's code (`h.0.mlp.c_fc.bias`); fillers named
`__pad__.N` keep the alignment, because the format allows no holes. `__metadata__` holds the
configuration, the precision and the digests of the files it was made from.

Matrices that are no wider than long, [n_in, n_out <= n_in], lie transposed and are named
`h.0.mlp.c_proj.weight.T`: threads that share out a product's outputs then read long runs, and a
token takes 9 % less.

Precision: `f32`; `bf16`, matrices as bfloat16; `int8`, matrices as integers q with a float32
`NAME.scale` for every `GROUP` of them along the input axis: weight = q * scale. Biases, layer norms
and position embeddings are float32 always.
"""

import json
import os
from typing import Literal

from gpt2core.checkpoint import Tensor, expected_shapes, open_with_metadata
from gpt2core.config import GPT2Config
from gpt2core.errors import CheckpointError, ConfigError
from gpt2core.layout import PACKED_FORMAT

ALIGNMENT = 64  # a cache line, and the widest vector register
GROUP = 64
PAD = "__pad__."
SCALE = ".scale"
TRANSPOSED = ".T"
Precision = Literal["f32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "int8")
_MATRIX_DTYPE = {"f32": "F32", "bf16": "BF16", "int8": "I8"}


def is_matrix(name: str) -> bool:
    """Whether a tensor is one that `bf16` and `int8` make smaller."""
    return name in ("wte.weight", "lm_head.weight") or (
        name.startswith("h.")
        and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    )


def input_axis(name: str) -> int:
    """The axis of a matrix that products sum over: Conv1D is [in, out], embeddings [vocab, in]."""
    return 1 if name in ("wte.weight", "lm_head.weight") else 0


def stored_name(name: str) -> str:
    """What a tensor is called in the file: a matrix that lies there transposed has a suffix."""
    return name + TRANSPOSED if name.endswith(".c_proj.weight") else name


def scale_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape of a matrix's scales: one for `GROUP` numbers along the input axis."""
    return tuple(-(-n // GROUP) if i == axis else n for i, n in enumerate(shape))


def reading_order(config: GPT2Config, *, has_head: bool) -> list[str]:
    """Names of all tensors as a forward pass comes to them.

    The token embeddings are last where they are the output embeddings, too: a pass reads a few of
    their rows first and all of them at its end. Otherwise they are never read as a whole.
    """
    names = [*expected_shapes(config)]
    head = ["lm_head.weight"] if has_head else []
    names = [name for name in names if name not in ("wte.weight", "lm_head.weight")]
    return [*names, *head, "wte.weight"]


def open_packed(path: str | os.PathLike[str]) -> tuple[GPT2Config, Precision, dict[str, Tensor]]:
    """Map a packed file: its configuration, its precision, and every tensor by name.

    Raises:
        CheckpointError: the file is missing or broken, is not packed by this version, or a tensor
            is missing, misaligned, of the wrong shape or type.
        ConfigError: its configuration is broken.
    """
    path = os.fspath(path)
    tensors, metadata = open_with_metadata(path)
    if metadata.get("format") != PACKED_FORMAT:
        raise CheckpointError(f"is not {PACKED_FORMAT}: pack the model again", file=path)
    precision = metadata.get("precision")
    if precision not in PRECISIONS:
        raise CheckpointError(f"has precision {ascii(precision)[:40]}", file=path)
    try:
        fields = json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError("holds no configuration", file=path) from error
    if not isinstance(fields, dict):
        raise ConfigError("is not an object", file=path)
    config = GPT2Config.from_dict(fields, file=path)
    shapes = dict(expected_shapes(config))
    if "lm_head.weight" in tensors:
        shapes["lm_head.weight"] = shapes["wte.weight"]
    selected = {}
    for name, shape in shapes.items():
        wanted = _MATRIX_DTYPE[precision] if is_matrix(name) else "F32"
        stored, axis = stored_name(name), input_axis(name)
        transposed = stored != name
        if transposed:
            shape, axis = shape[::-1], 1 - axis
        tensor = _checked(tensors, stored, wanted, shape, path)
        if wanted == "I8":
            scale = _checked(tensors, stored + SCALE, "F32", scale_shape(shape, axis), path)
            tensor = tensor._replace(scale=scale.data, axis=axis)
        selected[name] = tensor.transposed() if transposed else tensor
    return config, precision, selected


def _checked(
    tensors: dict[str, Tensor], name: str, dtype: str, shape: tuple[int, ...], path: str
) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise CheckpointError("is missing", file=path, tensor=name)
    if tensor.dtype != dtype or tensor.data.shape != shape:
        raise CheckpointError(
            f"is {tensor.dtype} {list(tensor.data.shape)} instead of {dtype} {list(shape)}",
            file=path,
            tensor=name,
        )
    if not tensor.data.flags.aligned:
        raise CheckpointError("is misaligned: pack the model again", file=path, tensor=name)
    return tensor
