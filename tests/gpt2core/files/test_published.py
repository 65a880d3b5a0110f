"""Directories of published models: what `handler fetch` writes."""

from pathlib import Path

import pytest

from gpt2core import Engine, GPT2Error, Tokenizer
from gpt2core.__main__ import main
from gpt2core.errors import ModelError
from gpt2core.files.names import CURRENT, MANIFEST_FILE, PACKED_FILE, REVISIONS, follow_current
from gpt2core.pack import pack
from handler.store.publish import Staging


def publish(model_dir: Path, root: Path) -> Path:
    """Pack and publish a model; returns its revision."""
    packed = root.with_name("packed")
    pack(model_dir, packed)
    staging = Staging(str(root))
    revision, _ = staging.publish((packed / MANIFEST_FILE).read_bytes(), str(packed))
    staging.close()
    return Path(revision)


@pytest.fixture
def root(model_dir: Path, tmp_path: Path) -> Path:
    publish(model_dir, tmp_path / "root")
    return tmp_path / "root"


def test_the_engine_and_the_tokenizer_open_the_current_revision(
    root: Path, model_dir: Path
) -> None:
    (revision,) = (root / REVISIONS).iterdir()
    engine = Engine.open(root)
    assert engine.model_dir == str(revision)
    assert engine.generate("abc", 3).ids == Engine.open(model_dir).generate("abc", 3).ids
    assert Tokenizer.open(root).encode("a") == [97]


def test_the_commands_follow_current(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(root)]) == 0
    assert main(["generate", "abc", "-n", "3", "--model", str(root)]) == 0
    assert main(["verify", str(root)]) == 1  # no published results for this shape
    done = capsys.readouterr()
    assert "not checked: no published results" in done.out
    assert done.err == ""


def test_packing_reads_the_current_revision(root: Path, model_dir: Path, tmp_path: Path) -> None:
    (revision,) = (root / REVISIONS).iterdir()
    with pytest.raises(ModelError, match="is already packed") as caught:
        pack(root, tmp_path / "again")
    assert caught.value.file == str(revision)


def test_a_model_is_not_packed_into_a_directory_of_published_models(
    root: Path, model_dir: Path
) -> None:
    with pytest.raises(ModelError, match="pack into another directory"):
        pack(model_dir, root)
    assert not (root / PACKED_FILE).exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../root", "missing", "a\0b"])
def test_a_current_file_that_names_no_revision_is_an_error(root: Path, name: str) -> None:
    (root / CURRENT).write_text(name)
    with pytest.raises(
        GPT2Error, match=f"^{root}: CURRENT names .* is not in revisions/: fetch the model again$"
    ):
        Engine.open(root)


def test_a_directory_without_current_is_itself_the_model(model_dir: Path) -> None:
    assert follow_current(str(model_dir)) == str(model_dir)
