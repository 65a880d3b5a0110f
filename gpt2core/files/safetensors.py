"""safetensors files as validated, zero-copy, read-only views of a memory map.

Opening reads only the header: tensors stay on disk until they are accessed. The file is not
trusted. Every property that the format guarantees is checked before a view is created, so views
stay inside their file and do not overlap.

Format: the header length in 8 bytes little-endian, the header as JSON, then the tensors' bytes
without gaps (https://github.com/huggingface/safetensors#format).
"""

import json
import mmap
import os
import stat

from gpt2core.errors import CheckpointError
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMENSIONS = 32

# The types of safetensors 0.8 and the NumPy types of their views, which end with their size in
# bytes. NumPy has no bfloat16: `to_float32` shifts those uint16. Types that are not used here stay
# bytes.
_DTYPES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "F8_E4M3": "|u1", "F8_E5M2": "|u1",
    "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2", "U32": "<u4", "I32": "<i4",
    "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8", "C64": "<c8", "F4": "|u1",
    "F6_E2M3": "|u1", "F6_E3M2": "|u1", "F8_E8M0": "|u1", "F8_E4M3FNUZ": "|u1",
    "F8_E5M2FNUZ": "|u1",
}  # fmt: skip
# The types that this package uses, as formats of the `struct` module.
_FORMATS: dict[str, Any] = {"U8": "B", "I8": "b", "F16": "H", "BF16": "H", "U32": "I", "I32": "i",
            "F32": "f", "U64": "Q"}  # fmt: skip
# Several elements share a byte: the views are flat arrays of bytes.
_SUB_BYTE_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


class Tensor(NamedTuple):
    """One tensor as stored in its file."""

    dtype: str
    """The format's name: "F32", "F16", "BF16", …"""
    shape: tuple[int, ...]
    raw: memoryview
    """Read-only bytes of the file, row by row."""
    file: str
    is_aligned: bool = True
    """Whether `raw` begins at a multiple of the size of an element."""
    scale: "Tensor | None" = None
    """Scales of quantized integers: F32, one for each group along `axis` (see `packed`)."""
    axis: int = 0
    is_transposed: bool = False
    """Whether `raw` has the elements of the matrix with its axes swapped."""

    @property
    def items(self) -> "memoryview[Any]":
        """The elements in the order of the file, without NumPy; F16 and BF16 as uint16.

        Only for the types of weights and tokenizer tables.
        """
        return self.raw.cast(_FORMATS[self.dtype]) if self.raw else self.raw

    @property
    def data(self) -> "np.ndarray[Any, Any]":
        """A view with the tensor's shape; BF16 as uint16, 4 and 6 bit types as flat bytes."""
        import numpy as np

        code = _DTYPES[self.dtype]
        flat = np.frombuffer(self.raw, code) if self.raw else np.empty(0, code)
        if self.dtype in _SUB_BYTE_BITS:
            return flat
        return flat.reshape(self.shape[::-1]).T if self.is_transposed else flat.reshape(self.shape)

    def transposed(self) -> "Tensor":
        """A view of a matrix with its axes swapped."""
        return self._replace(
            shape=self.shape[::-1],
            scale=self.scale and self.scale.transposed(),
            axis=1 - self.axis,
            is_transposed=not self.is_transposed,
        )


class _Span(NamedTuple):
    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]


def open_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Map one safetensors file; tensors by name, in the order they are stored.

    Raises:
        CheckpointError: see `open_with_metadata`.
    """
    return open_with_metadata(path)[0]


def open_with_metadata(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map one safetensors file; returns its tensors as `open_safetensors` does, and `__metadata__`.

    Raises:
        CheckpointError: the file is missing, unreadable, or violates the format.
    """
    path = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would block
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
            f"has a header of {length} bytes, over the format's limit of {MAX_HEADER_BYTES}",
            file=path,
        )
    start = 8 + length
    if start > size:
        raise CheckpointError(
            f"is truncated: it has {size} bytes and its header alone ends at byte {start}; download"
            " it again",
            file=path,
        )
    spans, metadata = _parse_header(mapping[8:start], size - start, path)
    content = memoryview(mapping)
    tensors = {}
    for span in spans:
        begin = start + span.begin
        raw = content[begin : start + span.end]
        is_aligned = not raw or begin % _itemsize(span.dtype) == 0
        tensors[span.name] = Tensor(span.dtype, span.shape, raw, path, is_aligned)
    return tensors, metadata


def _itemsize(dtype: str) -> int:
    """Bytes of an element; 1 for types of less than 8 bits."""
    return int(_DTYPES[dtype][2:])


def _parse_header(raw: bytes, data_bytes: int, file: str) -> tuple[list[_Span], dict[str, str]]:
    """Validate a header against the `data_bytes` that follow; spans in file order, metadata."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise CheckpointError(f"the header has the duplicate key {key!a}", file=file)
            found[key] = value
        return found

    if raw[:1] != b"{":
        raise CheckpointError(
            "the header does not begin with '{': not a safetensors file", file=file
        )
    try:
        header = json.loads(
            raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=_reject_constant
        )
    except (ValueError, RecursionError) as error:
        kind = "UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
        raise CheckpointError(f"the header is not {kind} ({error})", file=file) from error
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError("__metadata__ is not an object of strings", file=file)
    spans = sorted(_span(name, entry, data_bytes, file) for name, entry in header.items())
    at = 0
    for span in spans:
        if span.begin != at:
            kind = "overlaps the tensor before it" if span.begin < at else "leaves a gap before it"
            raise CheckpointError(
                f"begins at byte {span.begin} instead of {at}: it {kind}",
                file=file,
                tensor=span.name,
            )
        at = span.end
    if at != data_bytes:
        raise CheckpointError(
            f"has {data_bytes - at} trailing bytes after the last tensor: download it again",
            file=file,
        )
    return spans, metadata


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _span(name: str, entry: Any, data_bytes: int, file: str) -> _Span:
    """Validate one header entry on its own."""

    def invalid(problem: str) -> CheckpointError:
        return CheckpointError(problem, file=file, tensor=name)

    # The safetensors library ignores other keys, too.
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise invalid("the header entry lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise invalid(f"dtype {ascii(dtype)[:40]} is not supported")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise invalid(f"shape is not a list of at most {MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise invalid("data_offsets is not a pair [begin, end] of ascending sizes")
    if offsets[1] > data_bytes:
        raise invalid(
            f"ends at byte {offsets[1]} of the data, which has {data_bytes}: the file is truncated,"
            " download it again"
        )
    count = extent = 1
    for n in shape:
        count *= n
        extent *= n or 1
    if not count and extent >= 1 << 56:  # empty, but NumPy rejects the other dimensions
        raise invalid("shape has a dimension of size 0 and others of more than 2**56 elements")
    bits = count * _SUB_BYTE_BITS.get(dtype, 8 * _itemsize(dtype))
    if bits % 8:
        raise invalid(f"{dtype} {shape} does not fill whole bytes")
    if bits // 8 != offsets[1] - offsets[0]:
        raise invalid(f"{dtype} {shape} needs {bits // 8} bytes and has {offsets[1] - offsets[0]}")
    return _Span(offsets[0], offsets[1], name, dtype, tuple(shape))


def _are_sizes(values: Any) -> bool:
    """Whether `values` is a list of integers from 0 to 2**63 - 1."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)
