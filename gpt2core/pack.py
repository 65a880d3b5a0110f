"""A Hugging Face model directory -> packed weights and a compiled tokenizer.

What stands in DST afterwards is a model directory by itself: `packed.safetensors`,
`tokenizer.safetensors`, `config.json` and `gpt2.manifest.json`. The same input gives the same
bytes.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import file_digest, sha256
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt2core.checkpoint import Tensor, open_checkpoint
from gpt2core.config import GPT2Config, read_json
from gpt2core.errors import InvalidArgument, ModelError, TokenizerError
from gpt2core.layout import (
    CONFIG_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    PACKED_FILE,
    PACKED_FORMAT,
    SINGLE_FILE,
    TABLES_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILES,
)
from gpt2core.manifest import FileDigest, manifest_bytes
from gpt2core.packed import (
    ALIGNMENT,
    GROUP,
    PAD,
    PRECISIONS,
    SCALE,
    input_axis,
    is_matrix,
    reading_order,
    scale_shape,
    stored_name,
)
from gpt2core.weights import has_own_head, widen

_WIDTHS = {"F32": 4, "BF16": 2, "I8": 1, "U8": 1, "I32": 4, "U32": 4, "U64": 8}
_CODES = {"uint8": "U8", "int32": "I32",
          "uint32": "U32", "uint64": "U64"}  # fmt: skip
Progress = Callable[[int, int], None]


class Packed(NamedTuple):
    """What `pack` wrote."""

    digest: str
    """SHA-256 of the manifest."""
    files: dict[str, FileDigest]
    tokenizer_problem: str | None
    """Why the tokenizer was copied and not compiled; None where it was."""


def pack(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    precision: str = "f32",
    progress: Progress | None = None,
    source: object = None,
) -> Packed:
    """Pack the model directory `src` into `dst`, which is made if it is not there.

    `progress` is called with the bytes done and all bytes. `source` stands in the manifest;
    without it the digests of the files read do. Every file is written beside its place and renamed.

    Raises:
        InvalidArgument: an unknown precision.
        ModelError: `src` cannot be read; see `Engine.open`.
        OSError: `dst` cannot be written.
    """
    if precision not in PRECISIONS:
        raise InvalidArgument(
            f"precision {precision!r} is not one of {', '.join(PRECISIONS)}", param="precision"
        )
    src, dst = os.fspath(src), os.fspath(dst)
    if not os.path.isdir(src):
        raise ModelError("no such model directory", file=src)
    if os.path.exists(os.path.join(src, PACKED_FILE)) and not any(
        os.path.exists(os.path.join(src, name)) for name in (SINGLE_FILE, INDEX_FILE)
    ):
        raise ModelError("is packed already: pack the directory that it was made from", file=src)
    raw_config = read_json(os.path.join(src, CONFIG_FILE))
    config = GPT2Config.from_file(os.path.join(src, CONFIG_FILE))
    tensors = open_checkpoint(src, config)
    digests = _digests(src)
    metadata = {
        "format": PACKED_FORMAT,
        "precision": precision,
        "config": _json(raw_config),
        "source": _json(digests),
    }
    os.makedirs(dst, exist_ok=True)
    files = {}
    with _beside(dst, PACKED_FILE) as path:
        files[PACKED_FILE] = _weights(tensors, config, precision).write(path, metadata, progress)
    problem = None
    try:
        files |= _compile_tokenizer(src, dst, digests)
    except TokenizerError as error:
        problem = error.problem
        files |= _copy(src, dst, _tokenizer_files(src))
    files |= _copy(src, dst, (CONFIG_FILE,))
    manifest = manifest_bytes(files, digests if source is None else source, precision)
    with _beside(dst, MANIFEST_FILE) as path, open(path, "wb") as file:
        file.write(manifest)
    return Packed(sha256(manifest).hexdigest(), files, problem)


class _Piece(NamedTuple):
    """A tensor to be written: its shape now, its bytes when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    make: Callable[[], NDArray[Any]]


class _Layout:
    """Tensors in the order in which they are written, fillers between them."""

    def __init__(self) -> None:
        self.pieces: list[_Piece] = []

    def add(
        self, name: str, dtype: str, shape: tuple[int, ...], make: Callable[[], NDArray[Any]]
    ) -> None:
        """Append a tensor and what brings the next one to a multiple of `ALIGNMENT`."""
        size = _WIDTHS[dtype] * int(np.prod(shape))
        self.pieces.append(_Piece(name, dtype, shape, size, make))
        if filler := -size % ALIGNMENT:
            name = f"{PAD}{len(self.pieces)}"
            zeros = np.zeros(filler, np.uint8)
            self.pieces.append(_Piece(name, "U8", (filler,), filler, lambda: zeros))

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
        tensor, axis, stored = tensors[name], input_axis(name), stored_name(name)
        if stored != name:
            tensor, axis = tensor.transposed(), 1 - axis
        shape = tensor.data.shape
        if not is_matrix(name) or precision == "f32":
            layout.add(stored, "F32", shape, partial(widen, tensor))
        elif precision == "bf16":
            layout.add(stored, "BF16", shape, partial(_bfloat16_of, tensor))
        else:
            quantized = _Quantized(tensor, axis)
            layout.add(stored, "I8", shape, quantized.integers)
            layout.add(stored + SCALE, "F32", scale_shape(shape, axis), quantized.scales)
    return layout


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16 of each number, ties to even, as its 16 bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    rounded[np.isnan(values)] = 0x7FC0  # rounding could carry into the exponent
    return rounded


def _bfloat16_of(tensor: Tensor) -> NDArray[np.uint16]:
    return to_bfloat16(widen(tensor))


def quantize(
    values: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8: the integers, and for every `GROUP` of them along `axis` their scale.

    The scale is the largest magnitude of the group over 127; a group of zeros has scale 0.
    """
    begins = np.arange(0, values.shape[axis], GROUP)
    scales = np.maximum.reduceat(np.abs(values), begins, axis=axis) / np.float32(127)
    divisor = np.where(scales == 0, np.float32(1), scales)
    spread = np.repeat(divisor, GROUP, axis=axis).take(range(values.shape[axis]), axis=axis)
    return np.rint(values / spread).astype(np.int8), scales.astype(np.float32)


class _Quantized:
    """Integers and scales of one matrix, made when the integers are asked for."""

    def __init__(self, tensor: Tensor, axis: int) -> None:
        self._tensor = tensor
        self._axis = axis
        self._scales: NDArray[np.float32] | None = None

    def integers(self) -> NDArray[np.int8]:
        integers, self._scales = quantize(widen(self._tensor), self._axis)
        return integers

    def scales(self) -> NDArray[np.float32]:
        assert self._scales is not None  # they stand behind their integers
        return self._scales


def _compile_tokenizer(src: str, dst: str, digests: dict[str, str]) -> dict[str, FileDigest]:
    from gpt2core.tokenizer_compiler import compile_tokenizer

    tables, metadata = compile_tokenizer(src)
    sources = {name: digests[name] for name in _tokenizer_files(src) if name in digests}
    layout = _Layout()
    for name, table in tables.items():
        layout.add(name, _CODES[table.dtype.name], table.shape, partial(np.asarray, table))
    with _beside(dst, TABLES_FILE) as path:
        return {TABLES_FILE: layout.write(path, metadata | {"source": _json(sources)})}


def _tokenizer_files(src: str) -> tuple[str, ...]:
    """The files that a tokenizer is read from: one, or a vocabulary and what stands beside it."""
    whole = os.path.exists(os.path.join(src, TOKENIZER_FILE))
    return (TOKENIZER_FILE,) if whole else VOCABULARY_FILES


def _digests(src: str) -> dict[str, str]:
    """SHA-256 of every file that is read, by name."""
    names = [CONFIG_FILE, *_tokenizer_files(src)]
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


def _copy(src: str, dst: str, names: tuple[str, ...]) -> dict[str, FileDigest]:
    """Copy those of some files that are there."""
    copied = {}
    for name in names:
        origin = os.path.join(src, name)
        if not os.path.exists(origin):
            continue
        with _beside(dst, name) as path:
            shutil.copyfile(origin, path)
            with open(path, "rb") as file:
                digest = file_digest(file, "sha256").hexdigest()
            copied[name] = FileDigest(os.path.getsize(path), digest)
    return copied


@contextlib.contextmanager
def _beside(folder: str, name: str) -> Iterator[str]:
    """A path to write to, which becomes `name` at once when all has been written to the disk."""
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
