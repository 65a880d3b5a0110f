"""The revision of a model directory."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt2core import Engine
from gpt2core.errors import ModelError
from gpt2core.files.manifest import read_manifest
from gpt2core.files.revision import revision_of
from gpt2core.pack import pack
from tests.support.models import write_model


def test_file_times_do_not_change_the_revision(model_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model_dir, tmp_path / "copy"))
    os.utime(copy / "model.safetensors", (1, 1))
    (copy / "README.md").write_text("not read")
    assert revision_of(str(copy)) == revision_of(str(model_dir)) == Engine.open(copy).revision


def last_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = max(tensors)
    tensors[name] = tensors[name].copy()
    tensors[name].ravel()[-1] += np.float32(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def end_of_text(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 5}')


def vocabulary(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize("change", [last_weight, end_of_text, vocabulary])
def test_changes_that_affect_the_text_change_the_revision(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model")
    before = revision_of(str(folder))
    change(folder)
    assert revision_of(str(folder)) != before


def test_the_revision_of_a_published_model_is_its_manifests_digest(
    model_dir: Path, tmp_path: Path
) -> None:
    pack(str(model_dir), str(tmp_path / "packed"), "f32")
    manifest = read_manifest(str(tmp_path / "packed"))
    assert manifest
    assert Engine.open(tmp_path / "packed").revision == manifest.digest


def test_large_files_are_not_read_completely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "model")
    rows = {"big": np.zeros((64, 1 << 18), np.float32)}  # 64 MiB
    save_file(rows, folder / "model-00002.safetensors", metadata={"format": "pt"})
    read = 0
    pread = os.pread

    def counted(fd: int, size: int, at: int) -> bytes:
        nonlocal read
        read += size
        return pread(fd, size, at)

    monkeypatch.setattr(os, "pread", counted)
    revision_of(str(folder))
    assert read < 1 << 20


def test_missing_files_are_a_model_error(tmp_path: Path) -> None:
    engine = Engine.open(write_model(tmp_path / "model"))
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ModelError, match="cannot be read"):
        engine.revision  # noqa: B018
