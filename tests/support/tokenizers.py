"""A tokenizer in all forms: read by the `tokenizers` package, compiled, and read without it."""

from pathlib import Path

from safetensors.numpy import save_file

from gpt2core import Tokenizer
from gpt2core.files.names import TABLES_FILE
from gpt2core.tokenizer.compiler import compile_tokenizer
from gpt2core.tokenizer.huggingface import HuggingFaceBackend


def with_package(folder: Path) -> Tokenizer:
    """The tokenizer of a model directory, read by the `tokenizers` package."""
    return Tokenizer(HuggingFaceBackend.open(str(folder)))


def compiled(folder: Path, target: Path) -> Tokenizer:
    """The compiled tokenizer of a model directory."""
    tables, metadata = compile_tokenizer(str(folder))
    target.mkdir(exist_ok=True)
    save_file(tables, target / TABLES_FILE, metadata=metadata)
    return Tokenizer.open(target)


class Pair:
    """A tokenizer in all forms.

    `theirs` is read by the package, `ours` is compiled, and `plain` is what `Tokenizer.open` makes
    of the raw files: a `PlainTokenizer` if that supports them.
    """

    def __init__(self, folder: Path, target: Path) -> None:
        self.theirs = with_package(folder)
        self.ours = compiled(folder, target)
        self.plain = Tokenizer.open(folder)

    def agree(self, text: str) -> bool:
        return all(
            self.theirs.encode(text, allow_special=special)
            == self.ours.encode(text, allow_special=special)
            == self.plain.encode(text, allow_special=special)
            for special in (False, True)
        )
