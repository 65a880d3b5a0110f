"""The tensors of a GPT-2 checkpoint: their names and shapes."""

import os
import re
from collections.abc import Iterable

from gpt2core.config import GPT2Config, read_json
from gpt2core.errors import CheckpointError, ConfigError
from gpt2core.files.names import INDEX_FILE, SINGLE_FILE
from gpt2core.files.safetensors import Tensor, open_safetensors

_FLOATS = ("F32", "F16", "BF16")
# Patterns are compiled when a raw checkpoint is opened: packed models do not need them.
# The causal mask, stored by old versions of `transformers`. Not used.
_MASK = r"h\.\d+\.attn\.(bias|masked_bias)"
_LAYER = r"h\.(\d+)\."


def open_checkpoint(model_dir: str | os.PathLike[str], config: GPT2Config) -> dict[str, Tensor]:
    """Open the tensors of a model directory, by their names in GPT-2's code (`h.0.ln_1.bias`).

    Reads `model.safetensors` or the shards that `model.safetensors.index.json` lists. Strips the
    prefix `transformer.` and skips causal masks and the heads of other tasks. The remaining tensors
    match `config` exactly.

    Raises:
        CheckpointError: a file is missing or invalid; a tensor is missing, unexpected, or has the
            wrong shape or type.
    """
    model_dir = os.fspath(model_dir)
    index = os.path.join(model_dir, INDEX_FILE)
    single = os.path.join(model_dir, SINGLE_FILE)
    if os.path.exists(single) or not os.path.exists(index):
        paths, named = [single], single
    else:
        paths, named = _shards(model_dir, index), index
    tensors: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in open_safetensors(path).items():
            name = name.removeprefix("transformer.")
            if name in tensors:
                raise CheckpointError(f"is also in {tensors[name].file}", file=path, tensor=name)
            tensors[name] = tensor
    return _select(tensors, config, named)


def expected_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, in the order in which a forward pass reads them."""
    n_embd, n_inner = config.n_embd, config.n_inner
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, n_embd),
        "wpe.weight": (config.n_positions, n_embd),
    }
    for i in range(config.n_layer):
        shapes |= {
            f"h.{i}.ln_1.weight": (n_embd,),
            f"h.{i}.ln_1.bias": (n_embd,),
            f"h.{i}.attn.c_attn.weight": (n_embd, 3 * n_embd),
            f"h.{i}.attn.c_attn.bias": (3 * n_embd,),
            f"h.{i}.attn.c_proj.weight": (n_embd, n_embd),
            f"h.{i}.attn.c_proj.bias": (n_embd,),
            f"h.{i}.ln_2.weight": (n_embd,),
            f"h.{i}.ln_2.bias": (n_embd,),
            f"h.{i}.mlp.c_fc.weight": (n_embd, n_inner),
            f"h.{i}.mlp.c_fc.bias": (n_inner,),
            f"h.{i}.mlp.c_proj.weight": (n_inner, n_embd),
            f"h.{i}.mlp.c_proj.bias": (n_embd,),
        }
    shapes |= {"ln_f.weight": (n_embd,), "ln_f.bias": (n_embd,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, n_embd)
    return shapes


def _shards(model_dir: str, index: str) -> list[str]:
    """Paths of the shards that an index lists, without duplicates, inside the model directory."""
    try:
        weight_map = read_json(index).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(error.problem, file=index) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("weight_map is missing or empty", file=index)
    for name in weight_map.values():
        plain = isinstance(name, str) and name == os.path.basename(name) and name.isprintable()
        if not plain or name in ("", ".", ".."):
            raise CheckpointError(f"shard {ascii(name)[:80]} is not a plain file name", file=index)
    paths = [os.path.join(model_dir, name) for name in dict.fromkeys(weight_map.values())]
    for path in paths:
        if not os.path.exists(path):
            raise CheckpointError(f"shard {os.path.basename(path)} is missing", file=index)
    return paths


def _select(tensors: dict[str, Tensor], config: GPT2Config, file: str) -> dict[str, Tensor]:
    """The tensors of the network, with shapes and types checked."""
    if config.tie_word_embeddings and "wte.weight" not in tensors and "lm_head.weight" in tensors:
        # `safetensors.torch.save_model` keeps the alphabetically first name of a shared tensor.
        tensors["wte.weight"] = tensors["lm_head.weight"]
    expected = expected_shapes(config)
    if "lm_head.weight" in tensors:  # even if tied: `Weights` checks whether they differ
        expected["lm_head.weight"] = (config.vocab_size, config.n_embd)
    for name in _unknown(tensors, expected):
        raise CheckpointError(
            "is not part of the network that config.json describes",
            file=tensors[name].file,
            tensor=name,
        )
    selected = {}
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError("is missing", file=file, tensor=name)
        tensor = tensors[name]
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"has dtype {tensor.dtype}, not one of {', '.join(_FLOATS)}",
                file=tensor.file,
                tensor=name,
            )
        if tensor.shape != shape:
            raise CheckpointError(
                f"has shape {list(tensor.shape)}, not {list(shape)} as in config.json",
                file=tensor.file,
                tensor=name,
            )
        selected[name] = tensor
    return selected


def _unknown(tensors: Iterable[str], expected: dict[str, tuple[int, ...]]) -> list[str]:
    """Tensors inside the blocks that the network does not use: more layers, adapters, ….

    Heads of other tasks (`score.weight`) are outside the blocks and do not affect the logits.
    """
    return [
        name
        for name in tensors
        if re.match(_LAYER, name) and name not in expected and not re.fullmatch(_MASK, name)
    ]
