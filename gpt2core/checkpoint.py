"""safetensors files as validated, zero-copy, read-only views on one `mmap` each.

Opening reads the header and nothing else: tensors stay on disk until something touches them.
The file is not trusted. Every property that the format promises is checked before a view is
made, so a view never reaches outside its file and never overlaps another.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the tensors' bytes
without holes (https://github.com/huggingface/safetensors#format).
"""

import json
import mmap
import os
import re
import stat
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from gpt2core.config import GPT2Config, read_json
from gpt2core.errors import CheckpointError, ConfigError
from gpt2core.layout import INDEX_FILE, SINGLE_FILE

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMENSIONS = 32

# Bytes per element. NumPy has no bfloat16: those views are uint16 and `weights.widen` shifts them.
_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "F8_E4M3": "|u1", "F8_E5M2": "|u1",
        "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2", "U32": "<u4", "I32": "<i4",
        "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
    }.items()
}  # fmt: skip
_FLOATS = ("F32", "F16", "BF16")
# The causal mask, stored by old versions of `transformers`. Nothing needs it.
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_LAYER = re.compile(r"h\.(\d+)\.")


class Tensor(NamedTuple):
    """One tensor as it lies in its file."""

    dtype: str
    """The format's name: "F32", "F16", "BF16", …"""
    data: np.ndarray[Any, Any]
    """Read-only view, shaped; BF16 as uint16. Not aligned where the file is not."""
    file: str
    scale: np.ndarray[Any, Any] | None = None
    """Of quantized integers: float32, one for each group along `axis` (see `packed`)."""
    axis: int = 0

    def transposed(self) -> "Tensor":
        """A matrix as a view with its axes exchanged."""
        scale = None if self.scale is None else self.scale.T
        return self._replace(data=self.data.T, scale=scale, axis=1 - self.axis)


class _Span(NamedTuple):
    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]


def open_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Map one safetensors file; tensors by name, in the order they are stored.

    Raises:
        CheckpointError: as `open_with_metadata`.
    """
    return open_with_metadata(path)[0]


def open_with_metadata(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map one safetensors file; its tensors as `open_safetensors` gives them, and `__metadata__`.

    Raises:
        CheckpointError: the file is missing, unreadable, or breaks the format in any way.
    """
    path = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for ever
            raise CheckpointError("is not a regular file", file=path)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise CheckpointError(f"has {size} bytes, too few for a header", file=path)
            mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", file=path) from error
    length = int.from_bytes(mapping[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"declares a header of {length} bytes, over the format's {MAX_HEADER_BYTES}", file=path
        )
    start = 8 + length
    if start > size:
        raise CheckpointError(
            f"declares a header of {length} bytes but ends after {size}: truncated?", file=path
        )
    spans, metadata = _parse_header(mapping[8:start], size - start, path)
    tensors = {}
    for span in spans:
        dtype = _DTYPES[span.dtype]
        count = (span.end - span.begin) // dtype.itemsize
        flat = (
            np.frombuffer(mapping, dtype, count, start + span.begin)
            if count
            else np.empty(0, dtype)
        )
        tensors[span.name] = Tensor(span.dtype, flat.reshape(span.shape), path)
    return tensors, metadata


def open_checkpoint(model_dir: str | os.PathLike[str], config: GPT2Config) -> dict[str, Tensor]:
    """The tensors of a model directory by their names in GPT-2's code (`h.0.mlp.c_fc.bias`).

    Reads `model.safetensors` or the shards that `model.safetensors.index.json` lists. A
    `transformer.` prefix is taken off, causal masks and the heads of other tasks are left out,
    and what remains fits `config` exactly.

    Raises:
        CheckpointError: a file is missing or broken, a tensor is missing, unexpected, of the
            wrong shape or of a type that is no float.
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
    """Name and shape of every tensor of the network, in the order a forward pass reads them."""
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


def _parse_header(raw: bytes, data_bytes: int, file: str) -> tuple[list[_Span], dict[str, str]]:
    """Check a header against the `data_bytes` that follow it; spans in file order, metadata."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise CheckpointError(f"the header names {key!a} twice", file=file)
            found[key] = value
        return found

    if raw[:1] != b"{":
        raise CheckpointError("the header does not begin with '{': no safetensors file", file=file)
    try:
        header = json.loads(
            raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        kind = "UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
        raise CheckpointError(f"the header is not {kind}", file=file) from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError("__metadata__ is not an object of strings", file=file)
    spans = sorted(_span(name, entry, data_bytes, file) for name, entry in header.items())
    at = 0
    for span in spans:
        if span.begin != at:
            kind = "overlaps the tensor before it" if span.begin < at else "leaves a hole before it"
            raise CheckpointError(
                f"begins at byte {span.begin} instead of {at}: it {kind}",
                file=file,
                tensor=span.name,
            )
        at = span.end
    if at != data_bytes:
        raise CheckpointError(
            f"the tensors end at byte {at} of {data_bytes}: trailing bytes", file=file
        )
    return spans, metadata


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _span(name: str, entry: Any, data_bytes: int, file: str) -> _Span:
    """One header entry, checked by itself."""

    def broken(problem: str) -> CheckpointError:
        return CheckpointError(problem, file=file, tensor=name)

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise broken("the header entry is not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise broken(f"dtype {ascii(dtype)[:40]} is not supported")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise broken(f"shape is not a list of at most {MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken("data_offsets is not a pair [begin, end] of non-negative numbers in order")
    if offsets[1] > data_bytes:
        raise broken(f"ends at byte {offsets[1]} of {data_bytes}: truncated?")
    count = extent = 1
    for n in shape:
        count *= n
        extent *= n or 1
    if not count and extent >= 1 << 56:  # nothing in it, and still more than NumPy can address
        raise broken("shape is empty in one dimension and immense in the others")
    if count * _DTYPES[dtype].itemsize != offsets[1] - offsets[0]:
        raise broken(
            f"{dtype} {shape} needs {count * _DTYPES[dtype].itemsize} bytes"
            f" and has {offsets[1] - offsets[0]}"
        )
    return _Span(offsets[0], offsets[1], name, dtype, tuple(shape))


def _are_sizes(values: Any) -> bool:
    """A list of non-negative 64-bit numbers; JSON's true and 1.0 are none."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _shards(model_dir: str, index: str) -> list[str]:
    """Paths of the shards that an index names, each once, all inside the model directory."""
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
    """The tensors that the network needs, each of the right shape and a float."""
    if config.tie_word_embeddings and "wte.weight" not in tensors and "lm_head.weight" in tensors:
        # `safetensors.torch.save_model` keeps one name of a shared tensor: the first in ABC order.
        tensors["wte.weight"] = tensors["lm_head.weight"]
    expected = expected_shapes(config)
    if "lm_head.weight" in tensors:  # also where it is tied: `Weights` looks whether they differ
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
        if tensor.data.shape != shape:
            raise CheckpointError(
                f"has shape {list(tensor.data.shape)}, config.json asks for {list(shape)}",
                file=tensor.file,
                tensor=name,
            )
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"has dtype {tensor.dtype}, not one of {', '.join(_FLOATS)}",
                file=tensor.file,
                tensor=name,
            )
        selected[name] = tensor
    return selected


def _unknown(tensors: Iterable[str], expected: dict[str, tuple[int, ...]]) -> list[str]:
    """Tensors inside the blocks that the network would ignore: a deeper model, adapters, …

    Heads of other tasks (`score.weight`) stand outside the blocks and change no logit.
    """
    return [n for n in tensors if _LAYER.match(n) and n not in expected and not _MASK.fullmatch(n)]
