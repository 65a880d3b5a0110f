"""The implementations to compare: each is a script in this folder and a model in its own format.

Weights are random, in GPT-2's shapes (see `random_model`). Models are kept in bench/models.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from bench.convert import convert
from bench.measure import MODELS, ROOT
from bench.random_model import make
from gpt2core.files.names import PACKED_FORMAT
from gpt2core.pack import pack

PROMPT = "My name is John"
NEW_TOKENS = "10"
F32, INT8 = "ours f32", "ours int8"
# name: script, format, precision in the format's own terms, file in the folder
TABLE = {
    F32: ("with_ours.py", "packed", "f32", ""),
    "ours bf16": ("with_ours.py", "packed", "bf16", ""),
    INT8: ("with_ours.py", "packed", "int8", ""),
    "ours aligned": ("with_ours.py", "aligned", "", ""),
    "ours published": ("with_ours.py", "published", "", ""),
    "llama.cpp f32": ("with_llama_cpp.py", "gguf", "F32", "model.gguf"),
    "llama.cpp bf16": ("with_llama_cpp.py", "gguf", "BF16", "model.gguf"),
    "llama.cpp Q8_0": ("with_llama_cpp.py", "gguf", "Q8_0", "model.gguf"),
    "CTranslate2 f32": ("with_ctranslate2.py", "ctranslate2", "float32", ""),
    "CTranslate2 int8": ("with_ctranslate2.py", "ctranslate2", "int8", ""),
    "ONNX Runtime f32": ("with_onnxruntime.py", "onnx", "", ""),
    "transformers": ("with_transformers.py", "published", "", ""),
    "plain NumPy": ("with_plain_numpy.py", "published", "", ""),
}


class Implementation(NamedTuple):
    """A script and its model: `file` in the folder, or the folder itself."""

    script: str
    folder: Path
    file: str = ""

    def command(self, folder: Path | None = None) -> list[str]:
        """The command line, with the model in `folder` if it is given."""
        model = str((folder or self.folder) / self.file)
        return [sys.executable, str(ROOT / "bench" / self.script), model, PROMPT, NEW_TOKENS]


def implementations(*names: str, size: str = "124M") -> dict[str, Implementation]:
    """The implementations in `names`, or all, that are installed here."""
    stem = "gpt2" if size == "124M" else f"gpt2-{size}"
    published = make(MODELS / f"{stem}-published", size).absolute()
    found = {}
    for name in names or TABLE:
        script, kind, precision, file = TABLE[name]
        folder: Path | None = published
        if kind == "packed":
            folder = packed_model(published, precision)
        elif kind == "aligned":
            folder = make(MODELS / f"{stem}-aligned", size, aligned=True).absolute()
        elif kind != "published":
            folder = convert(kind, published, precision)
        if folder:
            found[name] = Implementation(script, folder, file)
    return found


def packed_model(published: Path, precision: str) -> Path:
    """The packed model; written on the first call."""
    stem = published.name.removesuffix("-published")
    kind = PACKED_FORMAT.removeprefix("gpt2-")  # a new format version needs a new pack
    folder = MODELS.absolute() / f"{stem}-{kind}-{precision}"
    if not (folder / "gpt2.manifest.json").exists():
        pack(published, folder, precision)
    return folder
