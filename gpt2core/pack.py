"""Packs a Hugging Face model directory: packed weights and a compiled tokenizer.

The output is a model directory of its own: `packed.safetensors`, `tokenizer.safetensors`,
`config.json` and `gpt2.manifest.json`. The same input gives the same bytes.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Container, Iterator
from functools import partial
from hashlib import file_digest, sha256
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt2core.config import GPT2Config, read_json, read_text
from gpt2core.errors import InvalidArgument, ModelError, TokenizerError
from gpt2core.files.checkpoint import open_checkpoint
from gpt2core.files.directory import check_has_model, has_raw_weights
from gpt2core.files.manifest import FileDigest, manifest_bytes
from gpt2core.files.names import (
    CONFIG_FILE,
    CURRENT,
    INDEX_FILE,
    MANIFEST_FILE,
    PACKED_FILE,
    PACKED_FORMAT,
    RAW_FILES,
    SINGLE_FILE,
    TABLES_FILE,
    config_files,
    follow_current,
    tokenizer_files,
)
from gpt2core.files.packed import (
    ALIGNMENT,
    GROUP,
    PAD,
    PRECISIONS,
    SCALE,
    is_matrix,
    reading_order,
    scale_shape,
    stored_name,
)
from gpt2core.files.safetensors import Tensor
from gpt2core.files.samples import record_sample
from gpt2core.kernels.reference import to_float32
from gpt2core.weights import has_own_head

_WIDTHS = {"F32": 4, "BF16": 2, "I8": 1, "U8": 1, "I32": 4, "U32": 4, "U64": 8}
_CODES = {"uint8": "U8", "int32": "I32",
          "uint32": "U32", "uint64": "U64"}  # fmt: skip
Progress = Callable[[int, int], None]


class Packed(NamedTuple):
    """The output of `pack`."""

    digest: str
    """SHA-256 of the manifest."""
    files: dict[str, FileDigest]
    tokenizer_problem: str | None
    """Why the tokenizer was copied instead of compiled; None if it was compiled."""


def pack(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    precision: str = "f32",
    progress: Progress | None = None,
    source: object = None,
) -> Packed:
    """Pack the model directory `src` into `dst`, which is created if missing.

    `src` may also be a directory of published models: see `Engine.open`.

    `progress` is called with the bytes written and the total. `source` is the manifest's source
    field, by default the digests of the input files. Every file is replaced atomically.

    Raises:
        InvalidArgument: the precision is unknown.
        ModelError: `src` cannot be read, see `Engine.open`; or `dst` has published models or the
            raw weights of another directory.
        OSError: `dst` cannot be written.
    """
    if precision not in PRECISIONS:
        raise InvalidArgument(
            f"precision {precision!r} is not one of {', '.join(PRECISIONS)}", param="precision"
        )
    src, dst = os.fspath(src), os.fspath(dst)
    if not os.path.isdir(src):
        raise ModelError("no such model directory", file=src)
    if os.path.exists(os.path.join(dst, CURRENT)):
        raise ModelError(f"has published models ({CURRENT}): pack into another directory", file=dst)
    src = follow_current(src)
    if has_raw_weights(dst) and not os.path.samefile(src, dst):
        raise ModelError("has weights of its own: pack into another directory", file=dst)
    if os.path.exists(os.path.join(src, PACKED_FILE)) and not has_raw_weights(src):
        raise ModelError("is already packed: pack the original directory instead", file=src)
    check_has_model(src)
    config = GPT2Config.from_file(os.path.join(src, CONFIG_FILE))
    tensors = open_checkpoint(src, config)
    digests = _digests(src)
    weights = [name for name in digests if name.endswith(".safetensors") or name == INDEX_FILE]
    metadata = {
        "format": PACKED_FORMAT,
        "precision": precision,
        "source": _json(digests),
        "samples": _json({name: record_sample(os.path.join(src, name)) for name in weights}),
    }
    for name in config_files(digests):
        metadata[name.removesuffix(".json")] = read_text(os.path.join(src, name))
    os.makedirs(dst, exist_ok=True)
    files = {}
    with _atomic_write(dst, PACKED_FILE) as path:
        files[PACKED_FILE] = _weights(tensors, config, precision).write(path, metadata, progress)
    problem = None
    try:
        files |= _compile_tokenizer(src, dst, digests)
    except TokenizerError as error:
        problem = error.problem
        files |= _copy(src, dst, tokenizer_files(os.listdir(src)))
    files |= _copy(src, dst, [CONFIG_FILE])
    _remove_outdated(src, dst, files)
    manifest = manifest_bytes(files, digests if source is None else source, precision)
    with _atomic_write(dst, MANIFEST_FILE) as path, open(path, "wb") as file:
        file.write(manifest)
    return Packed(sha256(manifest).hexdigest(), files, problem)


class _Piece(NamedTuple):
    """A tensor to write. `make` computes its data when it is written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    make: Callable[[], NDArray[Any]]


class _Layout:
    """Tensors in file order, with padding between them."""

    def __init__(self) -> None:
        self.pieces: list[_Piece] = []

    def add(
        self, name: str, dtype: str, shape: tuple[int, ...], make: Callable[[], NDArray[Any]]
    ) -> None:
        """Append a tensor, and padding up to a multiple of `ALIGNMENT`."""
        size = _WIDTHS[dtype] * int(np.prod(shape))
        self.pieces.append(_Piece(name, dtype, shape, size, make))
        if padding := -size % ALIGNMENT:
            name = f"{PAD}{len(self.pieces)}"
            zeros = np.zeros(padding, np.uint8)
            self.pieces.append(_Piece(name, "U8", (padding,), padding, lambda: zeros))

    def write(
        self, path: str, metadata: dict[str, str], progress: Progress | None = None
    ) -> FileDigest:
        """Write a safetensors file whose data begins at a multiple of `ALIGNMENT`."""
        header: dict[str, Any] = {"__metadata__": metadata}
        at = 0
        for piece in self.pieces:
            offsets = [at, at + piece.size]
            header[piece.name] = {
                "dtype": piece.dtype,
                "shape": piece.shape,
                "data_offsets": offsets,
            }
            at += piece.size
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-(8 + len(raw)) % ALIGNMENT)
        digest = sha256()
        with open(path, "wb") as file:
            for part in (len(raw).to_bytes(8, "little"), raw):
                digest.update(part)
                file.write(part)
            done = 0
            for piece in self.pieces:
                content = np.ascontiguousarray(piece.make()).reshape(-1).view(np.uint8).data
                digest.update(content)
                file.write(content)
                done += piece.size
                if progress:
                    progress(done, at)
        return FileDigest(8 + len(raw) + at, digest.hexdigest())


def _weights(tensors: dict[str, Tensor], config: GPT2Config, precision: str) -> _Layout:
    layout = _Layout()
    for name in reading_order(config, has_head=has_own_head(tensors, config)):
        tensor, stored = tensors[name], stored_name(name)
        if stored != name:
            tensor = tensor.transposed()
        shape = tensor.shape
        if not is_matrix(name) or precision == "f32":
            layout.add(stored, "F32", shape, partial(to_float32, tensor))
        elif precision == "bf16":
            layout.add(stored, "BF16", shape, partial(_bfloat16_of, tensor))
        else:
            quantized = _Quantized(tensor)
            layout.add(stored, "I8", shape, quantized.integers)
            layout.add(stored + SCALE, "F32", scale_shape(shape), quantized.scales)
    return layout


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 [...] to bfloat16, ties to even; returns their 16 bits, uint16 [...]."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    rounded[np.isnan(values)] = 0x7FC0  # rounding could carry into the exponent
    return rounded


def _bfloat16_of(tensor: Tensor) -> NDArray[np.uint16]:
    return to_bfloat16(to_float32(tensor))


def quantize(
    values: NDArray[np.float32], axis: int = 1
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 quantization: integers, and a scale for every `GROUP` of them along `axis`.

    With axis=1: values float32 [n_out, n_in] -> int8 [n_out, n_in], float32 scales
    [n_out, ceil(n_in / GROUP)]. The scale is the largest magnitude of the group divided by 127, or
    0 for a group of zeros.
    """
    begins = np.arange(0, values.shape[axis], GROUP)
    scales = np.maximum.reduceat(np.abs(values), begins, axis=axis) / np.float32(127)
    divisor = np.where(scales == 0, np.float32(1), scales)
    repeated = np.repeat(divisor, GROUP, axis=axis).take(range(values.shape[axis]), axis=axis)
    return np.rint(values / repeated).astype(np.int8), scales.astype(np.float32)


class _Quantized:
    """Integers and scales of one matrix, computed when the integers are written."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._scales: NDArray[np.float32] | None = None

    def integers(self) -> NDArray[np.int8]:
        integers, self._scales = quantize(to_float32(self._tensor))
        return integers

    def scales(self) -> NDArray[np.float32]:
        assert self._scales is not None  # they follow their integers in the file
        return self._scales


def _compile_tokenizer(src: str, dst: str, digests: dict[str, str]) -> dict[str, FileDigest]:
    from gpt2core.tokenizer.compiler import compile_tokenizer

    tables, metadata = compile_tokenizer(src)
    sources = {name: digests[name] for name in tokenizer_files(digests)}
    layout = _Layout()
    for name, table in tables.items():
        layout.add(name, _CODES[table.dtype.name], table.shape, partial(np.asarray, table))
    with _atomic_write(dst, TABLES_FILE) as path:
        return {TABLES_FILE: layout.write(path, metadata | {"source": _json(sources)})}


def _digests(src: str) -> dict[str, str]:
    """SHA-256 of every input file, by name."""
    found = os.listdir(src)
    names = config_files(found) + tokenizer_files(found)
    if os.path.exists(os.path.join(src, SINGLE_FILE)):
        names.append(SINGLE_FILE)
    else:
        index = read_json(os.path.join(src, INDEX_FILE))
        names += [INDEX_FILE, *sorted(set(index["weight_map"].values()))]
    digests = {}
    for name in sorted(names):
        with contextlib.suppress(FileNotFoundError), open(os.path.join(src, name), "rb") as file:
            digests[name] = file_digest(file, "sha256").hexdigest()
    return digests


def _remove_outdated(src: str, dst: str, files: Container[str]) -> None:
    """Remove the files that an earlier `pack` wrote and this one did not."""
    names = [TABLES_FILE]
    if not os.path.samefile(src, dst):
        names += RAW_FILES
    for name in names:
        if name not in files:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(dst, name))


def _copy(src: str, dst: str, names: list[str]) -> dict[str, FileDigest]:
    """Copy files by name; returns their sizes and digests."""
    copied = {}
    for name in names:
        origin = os.path.join(src, name)
        with _atomic_write(dst, name) as path:
            shutil.copyfile(origin, path)
            with open(path, "rb") as file:
                digest = file_digest(file, "sha256").hexdigest()
            copied[name] = FileDigest(os.path.getsize(path), digest)
    return copied


@contextlib.contextmanager
def _atomic_write(folder: str, name: str) -> Iterator[str]:
    """A temporary path to write to; on success it is synced and renamed to `name`."""
    path = os.path.join(folder, f".{name}.{os.getpid()}.part")
    try:
        yield path
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(path, os.path.join(folder, name))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
