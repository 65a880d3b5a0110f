import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpt2core.errors import GPT2Error
from gpt2core.files.manifest import FileDigest, manifest_bytes
from gpt2core.files.names import MANIFEST_FILE
from handler.errors import ModelUnavailable
from handler.settings import Settings
from handler.store import select
from handler.store.select import DEMO_DIR, ModelSource, cache_path, open_model

URI = "s3://bucket/models/gpt2"


@pytest.fixture
def volume(tmp_path: Path, model_dir: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "volume"))


def named(path: Path, **more: Any) -> Settings:
    return Settings(model_dir=str(path), model_dir_named=True, **more)


def locate(settings: Settings) -> ModelSource:
    """The selected model directory; none before it was reported as invalid."""

    def report(error: GPT2Error) -> None:
        raise AssertionError(error.message)

    source, opened = open_model(settings, lambda path: path, report)
    assert opened == source.path
    return source


def publish(root: Path, model_dir: Path, digest: str) -> Path:
    """Publish a revision on a volume."""
    revision = Path(shutil.copytree(model_dir, root / "revisions" / digest))
    (root / "CURRENT.new").write_text(f"{digest}\n")
    (root / "CURRENT.new").replace(root / "CURRENT")
    return revision


def test_without_a_volume_the_demo_is_used(tmp_path: Path) -> None:
    source = locate(Settings(model_dir=str(tmp_path / "none")))
    assert source == (DEMO_DIR, "demo", "demo")


def test_an_empty_default_volume_falls_back_to_the_demo(tmp_path: Path) -> None:
    assert locate(Settings(model_dir=str(tmp_path))).origin == "demo"


def test_a_volume_takes_precedence_over_cache_and_uri(volume: Path, tmp_path: Path) -> None:
    settings = named(volume, model_uri=URI, cache_dir=str(tmp_path / "cache"))
    shutil.copytree(volume, cache_path(settings, URI))
    assert locate(settings) == (str(volume), "volume", "volume")


def test_the_cache_takes_precedence_over_the_uri(tmp_path: Path, model_dir: Path) -> None:
    settings = named(tmp_path / "none", model_uri=URI, cache_dir=str(tmp_path / "cache"))
    publish(Path(cache_path(settings, URI)), model_dir, "a" * 64)
    source = locate(settings)
    assert (source.origin, source.name) == ("cache", URI)
    assert source.path.endswith("revisions/" + "a" * 64)


def test_each_uri_has_its_own_cache_directory() -> None:
    settings = Settings(cache_dir="/tmp/gpt2")
    paths = {cache_path(settings, uri) for uri in (URI, "s3://bucket/models-gpt2", "hf://../../x")}
    assert len(paths) == 3
    assert {str(Path(path).parent) for path in paths} == {"/tmp/gpt2/models"}


@pytest.mark.parametrize("uri", [None, "demo"])
def test_a_configured_volume_without_a_model_is_an_error(tmp_path: Path, uri: str | None) -> None:
    with pytest.raises(ModelUnavailable, match="has no model") as caught:
        locate(named(tmp_path, model_uri=uri))
    assert caught.value.param == "GPT2_MODEL_DIR"


@pytest.mark.parametrize("uri", [None, "demo"])
def test_a_configured_volume_with_an_invalid_model_is_an_error(
    tmp_path: Path, uri: str | None
) -> None:
    (tmp_path / "CURRENT").write_text("missing")
    with pytest.raises(ModelUnavailable, match="CURRENT names 'missing'"):
        locate(named(tmp_path, model_uri=uri))


def test_the_demo_can_be_configured_without_a_volume(tmp_path: Path) -> None:
    settings = Settings(model_dir=str(tmp_path / "none"), model_uri="demo")
    assert locate(settings).origin == "demo"


def test_current_names_the_revision_and_a_new_one_replaces_it(
    tmp_path: Path, model_dir: Path
) -> None:
    first = publish(tmp_path, model_dir, "1" * 64)
    assert locate(named(tmp_path)).path == str(first)
    second = publish(tmp_path, model_dir, "2" * 64)
    source = locate(named(tmp_path))
    assert source.path == str(second)
    assert source.name == f"{tmp_path.name}@{'2' * 12}"


@pytest.mark.parametrize("current", ["", "..", ".", "../../etc", "/etc", "missing", "a\0b", "\xff"])
def test_a_current_file_with_a_path_outside_is_rejected(
    tmp_path: Path, model_dir: Path, current: str
) -> None:
    publish(tmp_path, model_dir, "1" * 64)
    (tmp_path / "CURRENT").write_bytes(current.encode("latin-1"))
    with pytest.raises(ModelUnavailable, match="CURRENT"):
        locate(named(tmp_path))


def test_a_pinned_digest_must_match_the_weights(volume: Path) -> None:
    digest = hashlib.sha256((volume / "model.safetensors").read_bytes()).hexdigest()
    assert locate(named(volume, model_sha256=digest)).origin == "volume"
    with pytest.raises(ModelUnavailable, match=digest) as caught:
        locate(named(volume, model_sha256="0" * 64))
    assert caught.value.param == "GPT2_MODEL_SHA256"


def test_a_pinned_digest_without_a_weights_file_is_rejected(volume: Path) -> None:
    (volume / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="GPT2_MODEL_SHA256"):
        locate(named(volume, model_sha256="0" * 64))


def test_a_missing_demo_model_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "DEMO_DIR", str(tmp_path / "demo"))
    with pytest.raises(ModelUnavailable, match="demo model is missing from"):
        locate(Settings(model_dir=str(tmp_path)))


def with_manifest(folder: Path) -> bytes:
    """Write the manifest of a model directory; returns its bytes."""
    files = {
        path.name: FileDigest(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
    }
    raw = manifest_bytes(files, "tests")
    (folder / MANIFEST_FILE).write_bytes(raw)
    return raw


def test_a_volume_that_does_not_match_its_manifest_is_rejected(volume: Path) -> None:
    with_manifest(volume)
    assert locate(named(volume)).origin == "volume"
    os.truncate(volume / "model.safetensors", 1000)
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors has 1000 bytes"):
        locate(named(volume))


def test_a_symbolic_link_in_a_published_directory_is_rejected(volume: Path, tmp_path: Path) -> None:
    with_manifest(volume)
    (volume / "tokenizer.json").rename(tmp_path / "elsewhere")
    (volume / "tokenizer.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelUnavailable, match=r"tokenizer\.json is .* is not a regular file"):
        locate(named(volume))


def test_a_pinned_manifest_does_not_read_the_weights(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = with_manifest(volume)
    weights = hashlib.sha256((volume / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.delattr(hashlib, "file_digest")
    assert locate(named(volume, model_sha256=weights)).origin == "volume"
    digest = hashlib.sha256(manifest).hexdigest()
    assert locate(named(volume, model_sha256=digest)).origin == "volume"
    with pytest.raises(ModelUnavailable, match=digest) as caught:
        locate(named(volume, model_sha256="0" * 64))
    assert caught.value.param == "GPT2_MODEL_SHA256"
