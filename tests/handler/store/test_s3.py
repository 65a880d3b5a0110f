"""Models from S3: boto3, moto's server over HTTP, and a proxy that injects faults."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from gpt2core.files.names import MANIFEST_FILE
from handler.errors import (
    AccessDenied,
    DigestMismatch,
    DownloadFailed,
    ModelChanged,
    ModelNotFound,
    ModelUnavailable,
)
from handler.store import part, publish, s3
from handler.store.download import to_directory
from handler.store.revisions import resolve
from tests.support.downloads import WEIGHTS, Silent, download, leftovers, manifest_of, same_files
from tests.support.models import (
    assert_same_weights,
    small_config,
    write_model,
    write_sharded_model,
)
from tests.support.proxy import (
    Fault,
    FaultProxy,
    Handler,
    Response,
    after,
    corrupt,
    ignore_range,
    reset,
    stall,
    status,
    truncate,
)
from tests.support.s3_server import SECRET_KEY, Bucket

pytestmark = pytest.mark.usefixtures("small_parts_and_short_pauses")


def test_a_model_arrives_in_parts_and_is_published(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    done = download(uri, tmp_path)
    assert same_files(done.path, model_dir)
    assert done.path == str(tmp_path / "revisions" / done.digest)
    assert (tmp_path / "CURRENT").read_text() == f"{done.digest}\n"
    assert leftovers(tmp_path) == []
    ranges = [entry.range for entry in proxy.log if entry.method == "GET" and WEIGHTS in entry.path]
    assert len(ranges) == -(-(model_dir / WEIGHTS).stat().st_size // 10_000)
    assert len(set(ranges)) == len(ranges)


def test_the_same_model_is_not_downloaded_twice(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    before = download(uri, tmp_path)
    proxy.log.clear()
    after = download(uri, tmp_path)
    assert after == before._replace(fetched=False)
    assert [entry.method for entry in proxy.log] == ["GET"]  # the listing


def test_a_new_model_is_published_beside_the_old_one(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    old = download(uri, tmp_path)
    bucket.upload(write_model(tmp_path / "other", seed=1), "models/gpt2")
    new = download(uri, tmp_path)
    assert new.fetched
    assert same_files(old.path, model_dir)
    assert (tmp_path / "CURRENT").read_text() == f"{new.digest}\n"


def test_the_manifest_of_the_source_is_kept_and_names_the_revision(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    manifest = manifest_of(model_dir)
    bucket.put(f"models/gpt2/{MANIFEST_FILE}", manifest)
    done = download(uri, tmp_path, pin=hashlib.sha256(manifest).hexdigest())
    assert done.digest == hashlib.sha256(manifest).hexdigest()
    assert (Path(done.path) / MANIFEST_FILE).read_bytes() == manifest
    requested = {entry.path.split("/")[-1] for entry in proxy.log if entry.method == "HEAD"}
    assert requested <= {MANIFEST_FILE}  # S3 has no more information


def test_shards_arrive_with_their_index(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    folder = write_sharded_model(tmp_path / "sharded")
    done = download(bucket.upload(folder, "m"), tmp_path / "root")
    assert same_files(done.path, folder)


def test_only_the_files_of_a_gpt2_model_are_downloaded(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    for name in ("pytorch_model.bin", "README.md", "vocab.json", "merges.txt"):
        bucket.put(f"models/gpt2/{name}", b"not needed beside tokenizer.json")
    assert same_files(download(uri, tmp_path).path, model_dir)


def test_the_bucket_itself_may_be_the_model(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    for path in model_dir.iterdir():
        bucket.put(path.name, path.read_bytes())
    assert same_files(download(f"s3://{bucket.name}", tmp_path).path, model_dir)


def test_without_list_permission_files_are_requested_by_name(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    proxy.inject("GET", "list-type=2", status(403), times=99)
    # S3 also replies 403 for missing objects.
    for name in ("gpt2.manifest.json", "index.json", "vocab.json", "merges.txt", "_config.json"):
        proxy.inject("HEAD", name, status(403), times=99)
    proxy.inject("HEAD", "added_tokens", status(403), times=99)
    assert same_files(download(uri, tmp_path).path, model_dir)


def test_without_any_permission_the_error_names_the_missing_ones(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.inject("GET", "", status(403), times=99)
    proxy.inject("HEAD", "", status(403), times=99)
    with pytest.raises(AccessDenied, match=r"s3:GetObject.*s3:ListBucket"):
        download(uri, tmp_path)
    assert leftovers(tmp_path) == []


def test_a_model_may_be_published_packed(
    uri: str,
    proxy: FaultProxy,
    tmp_path: Path,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gpt2core import Engine

    weights = hashlib.sha256((model_dir / WEIGHTS).read_bytes()).hexdigest()
    done = to_directory(uri, str(tmp_path), pack="f32", pin=weights, show=Silent)
    names = {"config.json", "packed.safetensors", "tokenizer.safetensors", MANIFEST_FILE}
    assert {path.name for path in Path(done.path).iterdir()} == names
    assert not publish.is_damaged(done.path)
    assert_same_weights(Engine.open(done.path), Engine.open(model_dir))
    again = to_directory(uri, str(tmp_path), pack="f32", pin=weights, show=Silent)
    assert again == done._replace(fetched=False)
    monkeypatch.setattr("handler.store.download.PACKED_FORMAT", "of another version")
    assert to_directory(uri, str(tmp_path), pack="f32", pin=weights, show=Silent).fetched
    other = to_directory(uri, str(tmp_path), pack="int8", show=Silent)
    assert other.fetched
    assert leftovers(tmp_path) == []


def test_a_packed_model_is_downloaded_unchanged(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    from gpt2core.pack import pack

    packed = pack(model_dir, tmp_path / "packed", "int8")
    uri = bucket.upload(tmp_path / "packed", "m")
    done = download(uri, tmp_path / "root", pin=packed.digest)
    assert done.digest == packed.digest
    with pytest.raises(ModelUnavailable, match="is already packed"):
        to_directory(uri, str(tmp_path / "other"), pack="f32", show=Silent)


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_rejected_credentials_are_reported_at_once(
    uri: str, proxy: FaultProxy, tmp_path: Path, code: str
) -> None:
    def reject(handler: Handler, response: Response) -> None:
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        handler.send(Response(400, [("Content-Type", "application/xml")], body))

    proxy.inject("GET", "list-type=2", reject)
    with pytest.raises(AccessDenied, match=rf"{code}: S3 rejected the credentials"):
        download(uri, tmp_path)
    assert len(proxy.log) == 1


@pytest.mark.parametrize("name", [MANIFEST_FILE, "model.safetensors.index.json"])
def test_a_corrupted_index_is_downloaded_again(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path, name: str
) -> None:
    folder = write_sharded_model(tmp_path / "sharded")
    if name == MANIFEST_FILE:
        (folder / name).write_bytes(manifest_of(folder))
    uri = bucket.upload(folder, "m")
    proxy.inject("GET", name, corrupt(3))
    download(uri, tmp_path / "root")
    proxy.inject("GET", name, corrupt(3), times=99)
    with pytest.raises(DigestMismatch, match=f"s3://.*{name}.*both were removed"):
        download(uri, tmp_path / "other")


def test_a_file_that_does_not_match_the_pin_is_not_reused(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    manifest = manifest_of(model_dir)
    pin = hashlib.sha256(manifest).hexdigest()
    foreign = write_model(tmp_path / "foreign", seed=1)
    bucket.upload(foreign, "models/gpt2")
    with pytest.raises(DigestMismatch, match="as GPT2_MODEL_SHA256 requires"):
        download(uri, tmp_path / "root", pin=pin)
    bucket.put(f"models/gpt2/{MANIFEST_FILE}", manifest)
    with pytest.raises(DigestMismatch, match=r"has the sha256 [0-9a-f]{64}, expected"):
        download(uri, tmp_path / "root", pin=pin)
    assert not (tmp_path / "root" / "CURRENT").exists()


def test_publishing_is_not_interrupted_by_the_deadline(
    uri: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from time import monotonic

    original = publish.Staging.publish
    published, abandoned = threading.Event(), threading.Event()

    def slowly(staging: publish.Staging, *arguments: Any) -> tuple[str, bool]:
        assert abandoned.wait(20)
        done = original(staging, *arguments)
        published.set()
        return done

    monkeypatch.setattr(publish.Staging, "publish", slowly)
    with pytest.raises(DownloadFailed):
        to_directory(uri, str(tmp_path), deadline=monotonic() + 3, show=Silent)
    abandoned.set()
    assert published.wait(20)
    found = resolve(str(tmp_path))
    assert found
    assert not publish.is_damaged(found)


def test_without_credentials_the_error_says_so(
    uri: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(AccessDenied, match="credentials"):
        download(uri, tmp_path / "root")


@pytest.mark.parametrize(
    ("code", "times"), [(429, 3), (500, 3), (503, 7)], ids=["429", "500", "503"]
)
def test_server_errors_are_retried(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path, code: int, times: int
) -> None:
    proxy.inject("GET", "list-type=2", status(code), times=2)
    proxy.inject("HEAD", "config.json", status(code), times=2)
    proxy.inject("GET", WEIGHTS, status(code), times=times)
    assert same_files(download(uri, tmp_path).path, model_dir)


def test_a_persistent_error_reports_the_retries(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.inject("GET", WEIGHTS, status(503), times=999)
    with pytest.raises(
        DownloadFailed,
        match=r"model.safetensors: S3 returned 503.* 8 attempts in .*check the network",
    ):
        download(uri, tmp_path)
    assert not (tmp_path / "CURRENT").exists()


@pytest.mark.parametrize("fault", [truncate(3000), reset(3000), reset(0)])
def test_an_interrupted_response_is_resumed(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path, fault: Fault
) -> None:
    proxy.inject("GET", WEIGHTS, fault, times=5)
    assert same_files(download(uri, tmp_path).path, model_dir)


def test_a_truncated_response_is_resumed_instead_of_restarted(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.inject("GET", WEIGHTS, truncate(3000))
    download(uri, tmp_path)
    ranges = [entry.range for entry in proxy.log if entry.method == "GET" and WEIGHTS in entry.path]
    assert sum(str(r).startswith("bytes=") and int(str(r)[6:].split("-")[0]) % 10_000 == 3000
               for r in ranges) == 1  # fmt: skip


def test_a_corrupted_response_is_downloaded_again(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    proxy.inject("GET", WEIGHTS, corrupt(1234))
    assert same_files(download(uri, tmp_path).path, model_dir)


@pytest.mark.parametrize("with_manifest", [False, True])
def test_wrong_bytes_of_the_right_size_are_rejected_and_removed(
    uri: str,
    bucket: Bucket,
    proxy: FaultProxy,
    tmp_path: Path,
    model_dir: Path,
    with_manifest: bool,
) -> None:
    if with_manifest:
        bucket.put(f"models/gpt2/{MANIFEST_FILE}", manifest_of(model_dir))
    proxy.inject("GET", WEIGHTS, corrupt(1234), times=999)
    with pytest.raises(DigestMismatch, match=WEIGHTS):
        download(uri, tmp_path)
    assert not (tmp_path / "CURRENT").exists()
    assert not list(tmp_path.rglob(WEIGHTS))
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]  # of the other files
    assert all(path.stat().st_size < 10_000 for path in kept)


@pytest.mark.parametrize("algorithm", ["SHA256", "SHA1", "CRC32"])
def test_checksums_from_s3_are_verified(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path, algorithm: str
) -> None:
    uri = bucket.upload(model_dir, "m", ChecksumAlgorithm=algorithm)
    download(uri, tmp_path / "good")
    proxy.inject("GET", WEIGHTS, corrupt(0), times=999)
    with pytest.raises(DigestMismatch, match=algorithm.lower()):
        download(uri, tmp_path / "bad")


def test_a_server_that_ignores_ranges_is_an_error(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.inject("GET", WEIGHTS, ignore_range(), times=999)
    with pytest.raises(DownloadFailed, match="not the requested range"):
        download(uri, tmp_path)


def test_a_response_without_its_range_is_requested_again(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    proxy.inject("GET", WEIGHTS, ignore_range())
    assert same_files(download(uri, tmp_path).path, model_dir)


def test_a_file_of_one_part_may_ignore_the_range(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    proxy.inject("GET", "config.json", ignore_range())
    assert same_files(download(uri, tmp_path).path, model_dir)


def test_an_object_replaced_during_the_download_is_an_error(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    other = write_model(tmp_path / "other", seed=1)
    proxy.inject("GET", WEIGHTS, after(lambda: bucket.upload(other, "models/gpt2")))
    with pytest.raises(ModelChanged, match="changed during the download"):
        download(uri, tmp_path / "root")
    assert not (tmp_path / "root" / "CURRENT").exists()
    assert same_files(download(uri, tmp_path / "root").path, other)


def test_an_object_deleted_during_the_download_is_an_error(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.inject("GET", WEIGHTS, after(lambda: bucket.delete(f"models/gpt2/{WEIGHTS}")))
    with pytest.raises(ModelNotFound, match=WEIGHTS):
        download(uri, tmp_path)


def test_a_stalled_connection_times_out_and_is_retried(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 0.2)
    proxy.inject("GET", WEIGHTS, stall(1000))
    assert same_files(download(uri, tmp_path).path, model_dir)


def test_a_stalled_server_does_not_delay_an_invoke_beyond_its_deadline(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    from time import monotonic

    proxy.inject("GET", WEIGHTS, stall(1000), times=999)
    with pytest.raises(DownloadFailed, match=r"the deadline passed.*Timeout"):
        to_directory(uri, str(tmp_path), deadline=monotonic() + 0.7, show=Silent)
    assert not (tmp_path / "CURRENT").exists()


def test_files_complete_before_the_deadline_are_not_downloaded_again(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    small_ones = threading.Barrier(3)  # two are complete before the third is rejected
    finish = part.Part.finish

    def finished(each: part.Part, ignore_etag: bool = False) -> str:
        digest = finish(each, ignore_etag)
        small_ones.wait(20)
        return digest

    def reject(handler: Handler, response: Response) -> None:
        small_ones.wait(20)
        status(404)(handler, response)

    proxy.inject("GET", WEIGHTS, reject)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part.Part, "finish", finished)
        with pytest.raises(ModelNotFound):
            download(uri, tmp_path)
    assert leftovers(tmp_path) == ["incoming"]
    with FaultProxy(proxy.upstream) as second, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", second.url)
        assert same_files(download(uri, tmp_path).path, model_dir)
        fetched = {entry.path.split("/")[-1] for entry in second.log if entry.range}
    assert fetched == {WEIGHTS}
    assert leftovers(tmp_path) == []


def test_a_missing_bucket_and_an_empty_prefix_are_errors(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFound, match="NoSuchBucket"):
        download("s3://no-such-bucket-here/x", tmp_path)
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        download(f"s3://{bucket.name}/nothing", tmp_path)
    bucket.put("m/config.json", json.dumps(small_config()).encode())
    bucket.put("m/pytorch_model.bin", b"x")
    with pytest.raises(ModelNotFound, match=r"pytorch_model\.bin is not supported.*safetensors"):
        download(f"s3://{bucket.name}/m", tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_an_index_with_paths_outside_of_the_directory_is_rejected(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, shard: str
) -> None:
    bucket.put("m/config.json", json.dumps(small_config()).encode())
    index = {"weight_map": {"wte.weight": shard}}
    bucket.put("m/model.safetensors.index.json", json.dumps(index).encode())
    with pytest.raises(ModelNotFound, match="not a safetensors file name"):
        download(f"s3://{bucket.name}/m", tmp_path)


def test_an_index_that_names_a_missing_shard_is_rejected(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    folder = write_sharded_model(tmp_path / "sharded")
    uri = bucket.upload(folder, "m")
    bucket.delete("m/model-00002-of-00002.safetensors")
    with pytest.raises(
        ModelNotFound, match=r"model-00002-of-00002\.safetensors is listed in .* but missing"
    ):
        download(uri, tmp_path / "root")


@pytest.mark.parametrize(
    "manifest",
    [
        b"{",
        b'{"version": 2, "files": {}}',
        b'{"version": 1, "files": {"../x": {"size": 1, "sha256": "%s"}}}' % (b"0" * 64),
    ],
)
def test_an_invalid_manifest_at_the_source_is_an_error(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, manifest: bytes
) -> None:
    bucket.put(f"models/gpt2/{MANIFEST_FILE}", manifest)
    with pytest.raises(ModelNotFound, match=MANIFEST_FILE):
        download(uri, tmp_path)


def test_a_manifest_that_does_not_match_the_files_fails_before_the_download(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    bucket.put(f"models/gpt2/{MANIFEST_FILE}", manifest_of(model_dir))
    bucket.put(f"models/gpt2/{WEIGHTS}", b"shorter")
    with pytest.raises(DigestMismatch, match=r"model\.safetensors has 7 bytes"):
        download(uri, tmp_path)
    bucket.delete(f"models/gpt2/{WEIGHTS}")
    with pytest.raises(ModelNotFound, match=r"model\.safetensors is listed in .* but missing"):
        download(uri, tmp_path)


def test_a_pin_may_be_the_digest_of_the_weights(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    weights = hashlib.sha256((model_dir / WEIGHTS).read_bytes()).hexdigest()
    assert download(uri, tmp_path / "a", pin=weights).fetched
    with pytest.raises(DigestMismatch, match="as GPT2_MODEL_SHA256 requires") as caught:
        download(uri, tmp_path / "b", pin="0" * 64)
    assert caught.value.param == "GPT2_MODEL_SHA256"
    assert not (tmp_path / "b" / "CURRENT").exists()


def test_a_pinned_manifest_is_verified_before_the_download(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    bucket.put(f"models/gpt2/{MANIFEST_FILE}", manifest_of(model_dir))
    with pytest.raises(DigestMismatch, match="as GPT2_MODEL_SHA256 requires"):
        download(uri, tmp_path, pin="0" * 64)
    assert not [entry for entry in proxy.log if WEIGHTS in entry.path]


def test_files_that_are_not_a_model_are_not_published(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    bucket.put(f"models/gpt2/{WEIGHTS}", b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ModelUnavailable, match="is not a valid model") as caught:
        download(uri, tmp_path)
    assert "incoming" not in caught.value.message
    assert not (tmp_path / "CURRENT").exists()
    bucket.put("models/gpt2/tokenizer.json", b"{}")
    bucket.put(f"models/gpt2/{WEIGHTS}", (write_model(tmp_path / "m") / WEIGHTS).read_bytes())
    with pytest.raises(ModelUnavailable, match=r"tokenizer\.json"):
        download(uri, tmp_path)


def test_errors_contain_no_credentials(uri: str, proxy: FaultProxy, tmp_path: Path) -> None:
    seen = []
    for fault in (status(403), status(404), status(500), truncate(1), corrupt(0)):
        with FaultProxy(proxy.upstream) as second, pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL_S3", second.url)
            patch.setattr(s3, "PART_BYTES", 1 << 20)
            second.inject("GET", "model", fault, times=999)
            with pytest.raises(ModelUnavailable) as caught:
                download(uri, tmp_path)
            seen.append(f"{caught.value!s} {caught.value!r}")
    for text in seen:
        assert SECRET_KEY not in text
        assert "Signature" not in text
        assert "AKIA" not in text
