"""A tokenizer in both forms: from the `tokenizers` package, and compiled."""

from pathlib import Path

from safetensors.numpy import save_file

from gpt2core import Tokenizer
from gpt2core.files.names import TABLES_FILE
from gpt2core.tokenizer.compiler import compile_tokenizer


def compiled(folder: Path, target: Path) -> Tokenizer:
    """The compiled tokenizer of a model directory."""
    tables, metadata = compile_tokenizer(str(folder))
    target.mkdir(exist_ok=True)
    save_file(tables, target / TABLES_FILE, metadata=metadata)
    return Tokenizer.open(target)


class Pair:
    """A tokenizer in both forms."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.theirs = Tokenizer.open(folder)
        self.ours = compiled(folder, target)

    def agree(self, text: str) -> bool:
        return all(
            self.ours.encode(text, allow_special=special)
            == self.theirs.encode(text, allow_special=special)
            for special in (False, True)
        )
