"""Models from S3: the real boto3, moto's server over HTTP, and a proxy that spoils answers."""

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpt2core.layout import MANIFEST_FILE
from gpt2core.manifest import FileDigest, manifest_bytes
from handler import remote, s3, staging
from handler.download import Published, to_directory, to_memory
from handler.errors import (
    AccessDenied,
    DigestMismatch,
    DownloadFailed,
    ModelChanged,
    ModelNotFound,
    ModelUnavailable,
)
from handler.revisions import resolve
from tests.models import assert_same_weights, random_tensors, small_config, write_model
from tests.proxy import (
    Answer,
    FaultProxy,
    Handler,
    corrupt,
    first,
    ignore_range,
    reset,
    stall,
    status,
    truncate,
)
from tests.s3_server import SECRET_KEY, Bucket

WEIGHTS = "model.safetensors"


class Silent:
    """A display that shows nothing."""

    interval = 1.0

    def __init__(self, uri: str) -> None:
        pass

    def show(self, watch: object) -> None:
        pass

    def close(self, watch: object, finished: bool) -> None:
        pass


@pytest.fixture(autouse=True)
def small_parts_and_short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts a file, and no waiting between attempts."""
    monkeypatch.setattr(s3, "PART_BYTES", 10_000)
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def uri(bucket: Bucket, model_dir: Path) -> str:
    return bucket.upload(model_dir, "models/gpt2")


def download(uri: str, root: Path, pin: str | None = None) -> Published:
    return to_directory(uri, str(root), pin=pin, show=Silent)


def same_files(found: str, model_dir: Path) -> bool:
    names = {path.name for path in model_dir.iterdir()}
    return {path.name for path in Path(found).iterdir()} == names | {MANIFEST_FILE} and all(
        (Path(found) / name).read_bytes() == (model_dir / name).read_bytes() for name in names
    )


def left(root: Path) -> list[str]:
    """What stands below a root beside published revisions."""
    return sorted(path.name for path in root.iterdir() if path.name not in ("revisions", "CURRENT"))


def digest_of(folder: Path) -> bytes:
    """A manifest for a raw model directory, as users make one."""
    files = {
        path.name: FileDigest(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
    }
    return manifest_bytes(files, "tests")


def test_a_model_arrives_in_parts_and_is_published(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    done = download(uri, tmp_path)
    assert same_files(done.path, model_dir)
    assert done.path == str(tmp_path / "revisions" / done.digest)
    assert (tmp_path / "CURRENT").read_text() == f"{done.digest}\n"
    assert left(tmp_path) == []
    ranges = [entry.range for entry in proxy.log if entry.method == "GET" and WEIGHTS in entry.path]
    assert len(ranges) == -(-(model_dir / WEIGHTS).stat().st_size // 10_000)
    assert len(set(ranges)) == len(ranges)


def test_the_same_model_is_not_fetched_twice(
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
    manifest = digest_of(model_dir)
    bucket.put(f"models/gpt2/{MANIFEST_FILE}", manifest)
    done = download(uri, tmp_path, pin=hashlib.sha256(manifest).hexdigest())
    assert done.digest == hashlib.sha256(manifest).hexdigest()
    assert (Path(done.path) / MANIFEST_FILE).read_bytes() == manifest
    asked = {entry.path.split("/")[-1] for entry in proxy.log if entry.method == "HEAD"}
    assert asked <= {MANIFEST_FILE}  # S3 knows nothing to add


def test_shards_arrive_with_their_index(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    folder = sharded(tmp_path / "sharded")
    done = download(bucket.upload(folder, "m"), tmp_path / "root")
    assert same_files(done.path, folder)


def test_only_what_a_gpt2_needs_is_fetched(
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


def test_without_permission_to_list_objects_are_asked_for_by_name(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    proxy.spoil("GET", "list-type=2", status(403), times=99)
    # S3 answers 403 for what is not there, too.
    for name in ("gpt2.manifest.json", "index.json", "vocab.json", "merges.txt", "_config.json"):
        proxy.spoil("HEAD", name, status(403), times=99)
    proxy.spoil("HEAD", "added_tokens", status(403), times=99)
    assert same_files(download(uri, tmp_path).path, model_dir)


def test_without_any_permission_the_error_names_what_is_missing(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.spoil("GET", "", status(403), times=99)
    proxy.spoil("HEAD", "", status(403), times=99)
    with pytest.raises(AccessDenied, match=r"s3:GetObject.*s3:ListBucket"):
        download(uri, tmp_path)
    assert left(tmp_path) == []


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
    assert not staging.is_damaged(done.path)
    assert_same_weights(Engine.open(done.path), Engine.open(model_dir))
    again = to_directory(uri, str(tmp_path), pack="f32", pin=weights, show=Silent)
    assert again == done._replace(fetched=False)
    monkeypatch.setattr("handler.download.PACKED_FORMAT", "of another version")
    assert to_directory(uri, str(tmp_path), pack="f32", pin=weights, show=Silent).fetched
    other = to_directory(uri, str(tmp_path), pack="int8", show=Silent)
    assert other.fetched
    assert left(tmp_path) == []


def test_a_packed_model_comes_from_a_bucket_as_it_is(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    from gpt2core.pack import pack

    packed = pack(model_dir, tmp_path / "packed", "int8")
    uri = bucket.upload(tmp_path / "packed", "m")
    done = download(uri, tmp_path / "root", pin=packed.digest)
    assert done.digest == packed.digest
    with pytest.raises(ModelUnavailable, match="is packed already"):
        to_directory(uri, str(tmp_path / "other"), pack="f32", show=Silent)


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_refused_credentials_are_told_as_such_and_at_once(
    uri: str, proxy: FaultProxy, tmp_path: Path, code: str
) -> None:
    def refuse(handler: Handler, answer: Answer) -> None:
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        handler.send(Answer(400, [("Content-Type", "application/xml")], body))

    proxy.spoil("GET", "list-type=2", refuse)
    with pytest.raises(AccessDenied, match=rf"{code}: the credentials are refused"):
        download(uri, tmp_path)
    assert len(proxy.log) == 1


@pytest.mark.parametrize("name", [MANIFEST_FILE, "model.safetensors.index.json"])
def test_a_corrupted_list_of_files_is_fetched_again(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path, name: str
) -> None:
    folder = sharded(tmp_path / "sharded")
    if name == MANIFEST_FILE:
        (folder / name).write_bytes(digest_of(folder))
    uri = bucket.upload(folder, "m")
    proxy.spoil("GET", name, corrupt(3))
    download(uri, tmp_path / "root")
    proxy.spoil("GET", name, corrupt(3), times=99)
    with pytest.raises(DigestMismatch, match=f"s3://.*{name}.*both were removed"):
        download(uri, tmp_path / "other")


def test_a_file_that_failed_its_pin_is_not_taken_for_the_pinned_one_later(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    manifest = digest_of(model_dir)
    pin = hashlib.sha256(manifest).hexdigest()
    foreign = write_model(tmp_path / "foreign", seed=1)
    bucket.upload(foreign, "models/gpt2")
    with pytest.raises(DigestMismatch, match="is pinned"):
        download(uri, tmp_path / "root", pin=pin)
    bucket.put(f"models/gpt2/{MANIFEST_FILE}", manifest)
    with pytest.raises(DigestMismatch, match="its source promises"):
        download(uri, tmp_path / "root", pin=pin)
    assert not (tmp_path / "root" / "CURRENT").exists()


def test_what_is_being_published_when_the_time_is_up_is_not_taken_away(
    uri: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from time import monotonic

    publish = staging.Staging.publish
    published, given_up = threading.Event(), threading.Event()

    def slowly(place: staging.Staging, manifest: bytes, model_dir: str | None = None) -> str:
        assert given_up.wait(20)
        path = publish(place, manifest, model_dir)
        published.set()
        return path

    monkeypatch.setattr(staging.Staging, "publish", slowly)
    with pytest.raises(DownloadFailed):
        to_directory(uri, str(tmp_path), deadline=monotonic() + 3, show=Silent)
    given_up.set()
    assert published.wait(20)
    found = resolve(str(tmp_path))
    assert found
    assert not staging.is_damaged(found)


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
def test_errors_of_the_server_are_waited_out(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path, code: int, times: int
) -> None:
    proxy.spoil("GET", "list-type=2", status(code), times=2)
    proxy.spoil("HEAD", "config.json", status(code), times=2)
    proxy.spoil("GET", WEIGHTS, status(code), times=times)
    assert same_files(download(uri, tmp_path).path, model_dir)


def test_an_error_that_stays_says_what_was_tried(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.spoil("GET", WEIGHTS, status(503), times=999)
    with pytest.raises(DownloadFailed, match=r"model.safetensors: S3 answered 503.* 8 attempts"):
        download(uri, tmp_path)
    assert not (tmp_path / "CURRENT").exists()


@pytest.mark.parametrize("fault", [truncate(3000), reset(3000), reset(0)])
def test_an_answer_that_breaks_off_is_taken_up_where_it_ended(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path, fault: object
) -> None:
    proxy.spoil("GET", WEIGHTS, fault, times=5)  # type: ignore[arg-type]
    assert same_files(download(uri, tmp_path).path, model_dir)


def test_a_truncated_answer_is_resumed_and_not_repeated(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.spoil("GET", WEIGHTS, truncate(3000))
    download(uri, tmp_path)
    ranges = [entry.range for entry in proxy.log if entry.method == "GET" and WEIGHTS in entry.path]
    assert sum(str(r).startswith("bytes=") and int(str(r)[6:].split("-")[0]) % 10_000 == 3000
               for r in ranges) == 1  # fmt: skip


def test_one_corrupted_answer_is_fetched_again(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    proxy.spoil("GET", WEIGHTS, corrupt(1234))
    assert same_files(download(uri, tmp_path).path, model_dir)


@pytest.mark.parametrize("with_manifest", [False, True])
def test_wrong_bytes_of_the_right_size_are_refused_and_removed(
    uri: str,
    bucket: Bucket,
    proxy: FaultProxy,
    tmp_path: Path,
    model_dir: Path,
    with_manifest: bool,
) -> None:
    if with_manifest:
        bucket.put(f"models/gpt2/{MANIFEST_FILE}", digest_of(model_dir))
    proxy.spoil("GET", WEIGHTS, corrupt(1234), times=999)
    with pytest.raises(DigestMismatch, match=WEIGHTS):
        download(uri, tmp_path)
    assert not (tmp_path / "CURRENT").exists()
    assert not list(tmp_path.rglob(WEIGHTS))
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.parent.name == "verified" for path in kept)


@pytest.mark.parametrize("algorithm", ["SHA256", "SHA1", "CRC32"])
def test_checksums_that_s3_has_are_held_against_the_bytes(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path, algorithm: str
) -> None:
    uri = bucket.upload(model_dir, "m", ChecksumAlgorithm=algorithm)
    download(uri, tmp_path / "good")
    proxy.spoil("GET", WEIGHTS, corrupt(0), times=999)
    with pytest.raises(DigestMismatch, match=algorithm.lower()):
        download(uri, tmp_path / "bad")


def test_a_server_that_ignores_ranges_is_an_error(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.spoil("GET", WEIGHTS, ignore_range(), times=999)
    with pytest.raises(DownloadFailed, match="not the range that was asked for"):
        download(uri, tmp_path)


def test_one_answer_without_its_range_is_asked_for_again(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    proxy.spoil("GET", WEIGHTS, ignore_range())
    assert same_files(download(uri, tmp_path).path, model_dir)


def test_a_file_of_one_part_may_come_whole(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    proxy.spoil("GET", "config.json", ignore_range())
    assert same_files(download(uri, tmp_path).path, model_dir)


def test_an_object_replaced_during_the_download_is_an_error(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    other = write_model(tmp_path / "other", seed=1)
    proxy.spoil("GET", WEIGHTS, first(lambda: bucket.upload(other, "models/gpt2")))
    with pytest.raises(ModelChanged, match="replaced while it was downloaded"):
        download(uri, tmp_path / "root")
    assert not (tmp_path / "root" / "CURRENT").exists()
    assert same_files(download(uri, tmp_path / "root").path, other)


def test_an_object_deleted_during_the_download_is_an_error(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.spoil("GET", WEIGHTS, first(lambda: bucket.delete(f"models/gpt2/{WEIGHTS}")))
    with pytest.raises(ModelNotFound, match=WEIGHTS):
        download(uri, tmp_path)


def test_a_stalled_server_is_given_up_and_asked_again(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "STALL_S", 0.2)
    proxy.spoil("GET", WEIGHTS, stall(1000))
    assert same_files(download(uri, tmp_path).path, model_dir)


def test_a_server_that_stalls_for_good_does_not_hold_an_invoke_beyond_its_deadline(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    from time import monotonic

    proxy.spoil("GET", WEIGHTS, stall(1000), times=999)
    with pytest.raises(DownloadFailed, match=r"the function's time was up.*Timeout"):
        to_directory(uri, str(tmp_path), deadline=monotonic() + 0.7, show=Silent)
    assert not (tmp_path / "CURRENT").exists()


def test_files_that_arrived_before_the_deadline_are_not_fetched_again(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    small_ones = threading.Barrier(3)  # two are kept before the third is refused

    class Waiting(staging.Staging):
        def keep(self, file: remote.RemoteFile, path: str, digest: str) -> None:
            super().keep(file, path, digest)
            small_ones.wait(20)

    def refuse(handler: Handler, answer: Answer) -> None:
        small_ones.wait(20)
        status(404)(handler, answer)

    proxy.spoil("GET", WEIGHTS, refuse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "Staging", Waiting)
        with pytest.raises(ModelNotFound):
            download(uri, tmp_path)
    assert left(tmp_path) == ["incoming"]
    with FaultProxy(proxy.upstream) as second, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", second.url)
        assert same_files(download(uri, tmp_path).path, model_dir)
        fetched = {entry.path.split("/")[-1] for entry in second.log if entry.range}
    assert fetched == {WEIGHTS}
    assert left(tmp_path) == []


def test_a_missing_bucket_and_a_prefix_without_a_model_are_errors(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFound, match="NoSuchBucket"):
        download("s3://no-such-bucket-here/x", tmp_path)
    with pytest.raises(ModelNotFound, match=r"holds no config\.json"):
        download(f"s3://{bucket.name}/nothing", tmp_path)
    bucket.put("m/config.json", json.dumps(small_config()).encode())
    bucket.put("m/pytorch_model.bin", b"x")
    with pytest.raises(ModelNotFound, match=r"pytorch_model\.bin cannot be read.*safetensors"):
        download(f"s3://{bucket.name}/m", tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_an_index_that_leads_out_of_the_directory_is_refused(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, shard: str
) -> None:
    bucket.put("m/config.json", json.dumps(small_config()).encode())
    index = {"weight_map": {"wte.weight": shard}}
    bucket.put("m/model.safetensors.index.json", json.dumps(index).encode())
    with pytest.raises(ModelNotFound, match="no shard beside it"):
        download(f"s3://{bucket.name}/m", tmp_path)


def test_an_index_that_names_a_missing_shard_is_refused(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    folder = sharded(tmp_path / "sharded")
    uri = bucket.upload(folder, "m")
    bucket.delete("m/model-00002-of-00002.safetensors")
    with pytest.raises(
        ModelNotFound, match=r"model-00002-of-00002\.safetensors, which is not there"
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
def test_a_broken_manifest_at_the_source_is_an_error(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, manifest: bytes
) -> None:
    bucket.put(f"models/gpt2/{MANIFEST_FILE}", manifest)
    with pytest.raises(ModelNotFound, match=MANIFEST_FILE):
        download(uri, tmp_path)


def test_a_manifest_that_does_not_fit_its_files_is_an_error_before_they_are_fetched(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    bucket.put(f"models/gpt2/{MANIFEST_FILE}", digest_of(model_dir))
    bucket.put(f"models/gpt2/{WEIGHTS}", b"shorter")
    with pytest.raises(DigestMismatch, match=r"model\.safetensors has 7 bytes"):
        download(uri, tmp_path)
    bucket.delete(f"models/gpt2/{WEIGHTS}")
    with pytest.raises(ModelNotFound, match=r"lists model\.safetensors, which is not there"):
        download(uri, tmp_path)


def test_a_pin_may_be_the_digest_of_the_weights(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    weights = hashlib.sha256((model_dir / WEIGHTS).read_bytes()).hexdigest()
    assert download(uri, tmp_path / "a", pin=weights).fetched
    with pytest.raises(DigestMismatch, match="is pinned") as caught:
        download(uri, tmp_path / "b", pin="0" * 64)
    assert caught.value.param == "GPT2_MODEL_SHA256"
    assert not (tmp_path / "b" / "CURRENT").exists()


def test_a_pinned_manifest_is_looked_at_before_any_file_is_fetched(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    bucket.put(f"models/gpt2/{MANIFEST_FILE}", digest_of(model_dir))
    with pytest.raises(DigestMismatch, match="is pinned"):
        download(uri, tmp_path, pin="0" * 64)
    assert not [entry for entry in proxy.log if WEIGHTS in entry.path]


def test_files_that_are_no_model_are_never_published(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    bucket.put(f"models/gpt2/{WEIGHTS}", b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ModelUnavailable, match="no model that can be used") as caught:
        download(uri, tmp_path)
    assert "incoming" not in caught.value.message
    assert not (tmp_path / "CURRENT").exists()
    bucket.put("models/gpt2/tokenizer.json", b"{}")
    bucket.put(f"models/gpt2/{WEIGHTS}", (write_model(tmp_path / "m") / WEIGHTS).read_bytes())
    with pytest.raises(ModelUnavailable, match=r"tokenizer\.json"):
        download(uri, tmp_path)


def test_a_model_may_stay_in_memory(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    from gpt2core import Engine

    kept = to_memory(uri, show=Silent)
    weights = (Path(kept.path) / WEIGHTS).resolve()
    assert "memfd:" in str((Path(kept.path) / WEIGHTS).readlink().readlink())
    assert weights != Path(kept.path) / WEIGHTS
    ids = Engine.open(kept.path).generate_ids([1, 2, 3], 5)
    assert ids == Engine.open(model_dir).generate_ids([1, 2, 3], 5)


def test_a_sharded_model_in_memory_fetches_its_index_once(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    from gpt2core import Engine

    kept = to_memory(bucket.upload(sharded(tmp_path / "sharded"), "m"), show=Silent)
    assert Engine.open(kept.path).generate_ids([1], 2)
    assert len([e for e in proxy.log if e.method == "GET" and "index.json" in e.path]) == 1


def test_a_model_in_memory_that_failed_gives_everything_back(
    uri: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import tempfile

    def memfds() -> int:
        paths = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        return sum("memfd:" in os.readlink(path) for path in paths if os.path.lexists(path))

    before = memfds()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    proxy.spoil("GET", WEIGHTS, corrupt(0), times=999)
    with pytest.raises(DigestMismatch):
        to_memory(uri, show=Silent)
    assert list(tmp_path.iterdir()) == []
    assert memfds() == before


def test_errors_hold_no_credentials(uri: str, proxy: FaultProxy, tmp_path: Path) -> None:
    seen = []
    for fault in (status(403), status(404), status(500), truncate(1), corrupt(0)):
        with FaultProxy(proxy.upstream) as second, pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL_S3", second.url)
            patch.setattr(s3, "PART_BYTES", 1 << 20)
            second.spoil("GET", "model", fault, times=999)
            with pytest.raises(ModelUnavailable) as caught:
                download(uri, tmp_path)
            seen.append(f"{caught.value!s} {caught.value!r}")
    for text in seen:
        assert SECRET_KEY not in text
        assert "Signature" not in text
        assert "AKIA" not in text


def sharded(folder: Path) -> Path:
    """A model in two shards with their index."""
    write_model(folder)
    (folder / WEIGHTS).unlink()
    tensors = random_tensors(small_config())
    names = list(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{i}-of-00002.safetensors"
        save_file({name: np.ascontiguousarray(tensors[name]) for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
