import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gpt2core.files.manifest import (
    FileDigest,
    ManifestError,
    check_sizes,
    is_plain_name,
    manifest_bytes,
    parse_manifest,
    read_manifest,
)
from gpt2core.files.names import MANIFEST_FILE

DIGEST = "0123456789abcdef" * 4
FILES = {"b.safetensors": FileDigest(3, DIGEST), "a.json": FileDigest(2, DIGEST)}


def test_the_same_files_give_the_same_bytes_in_any_order() -> None:
    raw = manifest_bytes(FILES, "s3://bucket/x")
    assert raw == manifest_bytes(dict(reversed(FILES.items())), "s3://bucket/x")
    manifest = parse_manifest(raw)
    assert manifest.files == FILES
    assert manifest.source == "s3://bucket/x"
    assert manifest.digest == hashlib.sha256(raw).hexdigest()


def test_a_pin_matches_the_manifest_or_the_weights() -> None:
    weights = {"model.safetensors": FileDigest(1, "a" * 64), "x.json": FileDigest(1, "b" * 64)}
    manifest = parse_manifest(manifest_bytes(weights, "tests"))
    assert manifest.is_pinned_by("a" * 64)
    assert manifest.is_pinned_by(manifest.digest)
    assert not manifest.is_pinned_by("b" * 64)


def test_the_digest_of_one_shard_is_not_a_pin() -> None:
    files = {name: FileDigest(1, "a" * 64) for name in ("packed.safetensors", "x.json")}
    files["tokenizer.safetensors"] = FileDigest(1, "b" * 64)
    assert parse_manifest(manifest_bytes(files, "tests")).is_pinned_by("a" * 64)
    assert not parse_manifest(manifest_bytes(files, "tests")).is_pinned_by("b" * 64)
    files["model.safetensors"] = FileDigest(1, "c" * 64)
    assert not parse_manifest(manifest_bytes(files, "tests")).is_pinned_by("a" * 64)
    assert not parse_manifest(manifest_bytes(files, "tests")).is_pinned_by("c" * 64)


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        {},
        {"version": 2, "files": {"a": {"size": 1, "sha256": DIGEST}}},
        {"version": 1, "files": {}},
        {"version": 1, "files": {"a": None}},
        {"version": 1, "files": {"a": {"size": -1, "sha256": DIGEST}}},
        {"version": 1, "files": {"a": {"size": True, "sha256": DIGEST}}},
        {"version": 1, "files": {"a": {"size": 1, "sha256": DIGEST.upper()}}},
        {"version": 1, "files": {"a": {"size": 1, "sha256": DIGEST[1:]}}},
        {"version": 1, "files": {"../a": {"size": 1, "sha256": DIGEST}}},
        {"version": 1, "files": {MANIFEST_FILE: {"size": 1, "sha256": DIGEST}}},
    ],
)
def test_an_invalid_manifest_is_rejected(fields: Any) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"version": 2},
            "gpt2.manifest.json has version 2, not 1: pack or download the model again",
        ),
        (
            {"version": 1, "files": {"a": {"size": 1}}},
            "gpt2.manifest.json: a: size or sha256 is missing or invalid",
        ),
        ([], "gpt2.manifest.json is a JSON list, not an object"),
    ],
)
def test_the_error_says_what_is_invalid(fields: Any, words: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(json.dumps(fields).encode())
    assert str(caught.value) == words


@pytest.mark.parametrize("raw", [b"", b"\xff", b"{", b"[" * 100_000, b" " * (1 << 21)])
def test_invalid_json_is_rejected(raw: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(raw)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-rf", "a/b", "a\\b", "a\0b", "é", "a" * 129, 5]
)
def test_a_name_with_a_path_is_not_plain(name: object) -> None:
    assert not is_plain_name(name)
    assert is_plain_name("model-00001-of-00002.safetensors")


def test_a_file_that_does_not_match_the_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"{}")
    (tmp_path / "b.safetensors").write_bytes(b"abc")
    manifest = parse_manifest(manifest_bytes(FILES, "tests"))
    check_sizes(str(tmp_path), manifest)
    (tmp_path / "a.json").write_bytes(b"{} ")
    with pytest.raises(ManifestError, match=r"a\.json has 3 bytes, not 2 as in"):
        check_sizes(str(tmp_path), manifest)
    (tmp_path / "a.json").unlink()
    with pytest.raises(ManifestError, match=r"a\.json is .* unavailable"):
        check_sizes(str(tmp_path), manifest)
    (tmp_path / "elsewhere").write_bytes(b"{}")
    (tmp_path / "a.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match=r"a\.json is .* is not a regular file"):
        check_sizes(str(tmp_path), manifest)


def test_a_directory_without_a_manifest_has_none_and_a_fifo_is_rejected(tmp_path: Path) -> None:
    assert read_manifest(str(tmp_path)) is None
    os.mkfifo(tmp_path / MANIFEST_FILE)
    with pytest.raises(ManifestError, match="not a regular file"):
        read_manifest(str(tmp_path))
