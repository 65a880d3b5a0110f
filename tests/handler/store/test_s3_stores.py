"""Special buckets and S3-compatible stores, and interrupted downloads."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2core.files.names import MANIFEST_FILE
from handler.errors import (
    AccessDenied,
    DigestMismatch,
    DownloadFailed,
    ModelNotFound,
    ModelUnavailable,
)
from handler.store import s3, transfer
from handler.store.download import to_directory
from tests.support.downloads import WEIGHTS, Silent, download, leftovers, manifest_of, same_files
from tests.support.proxy import FaultProxy, Handler, Response, after, forward, stall, status
from tests.support.s3_server import Bucket

pytestmark = pytest.mark.usefixtures("small_parts_and_short_pauses")


def non_md5_etags(handler: Handler, response: Response) -> None:
    """A store whose ETags have 32 hex digits but are not MD5: moto's, reversed."""

    def backwards(text: str) -> str:
        return re.sub(r"\b[0-9a-f]{32}\b", lambda found: found[0][::-1], text)

    headers = {k: backwards(v) if k == "If-Match" else v for k, v in handler.headers.items()}
    response = handler.upstream(b"", headers)
    body = response.body
    if "list-type" in handler.path:
        body = backwards(body.decode()).encode()
    kept = [(k, backwards(v) if k.lower() == "etag" else v) for k, v in response.headers]
    handler.send(Response(response.status, kept, body))


@pytest.mark.parametrize("with_manifest", [False, True])
def test_an_etag_other_than_md5_causes_at_most_one_more_download(
    uri: str,
    bucket: Bucket,
    proxy: FaultProxy,
    tmp_path: Path,
    model_dir: Path,
    with_manifest: bool,
) -> None:
    if with_manifest:
        bucket.put(f"models/gpt2/{MANIFEST_FILE}", manifest_of(model_dir))
    proxy.inject("GET", "", non_md5_etags, times=999)
    proxy.inject("HEAD", "", non_md5_etags, times=999)
    assert same_files(download(uri, tmp_path).path, model_dir)
    size = (model_dir / WEIGHTS).stat().st_size
    fetched = sum(map(bytes_of, (e.range for e in proxy.log if WEIGHTS in e.path)))
    assert fetched == size if with_manifest else size <= fetched <= 2 * size


def bytes_of(wanted: str | None) -> int:
    begin, _, end = (wanted or "bytes=1-0").removeprefix("bytes=").partition("-")
    return int(end) - int(begin) + 1


def test_the_manifest_detects_wrong_bytes_without_an_md5_etag(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    bucket.put(f"models/gpt2/{MANIFEST_FILE}", manifest_of(model_dir))
    bucket.put(f"models/gpt2/{WEIGHTS}", bytes((model_dir / WEIGHTS).stat().st_size))
    proxy.inject("GET", "", non_md5_etags, times=999)
    proxy.inject("HEAD", "", non_md5_etags, times=999)
    with pytest.raises(DigestMismatch, match=WEIGHTS):
        download(uri, tmp_path)


def test_etags_of_directory_buckets_are_not_compared(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3.S3("s3://models--use1-az4--x-s3/gpt2")
    head = {"ETag": f'"{"0" * 32}"', "ContentLength": 1}
    monkeypatch.setattr(store, "_call", lambda *args, **arguments: head)
    file = transfer.RemoteFile("config.json", 1, head["ETag"])
    assert store.with_digests(file).digests == {}
    assert s3.S3("s3://models/gpt2")._bucket == "models"


@pytest.mark.parametrize("prefix", ["/models/x", "models//x", "models/x/", "/"])
def test_keys_are_used_unchanged(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path, prefix: str
) -> None:
    for path in model_dir.iterdir():
        bucket.put(f"{prefix}/{path.name}", path.read_bytes())
    uri = f"s3://{bucket.name}/{prefix}"
    if prefix.endswith("/"):
        with pytest.raises(ModelNotFound, match=r"has no config\.json"):
            download(uri, tmp_path / "one")
        uri += "/"
    assert same_files(download(uri, tmp_path / "root").path, model_dir)


def s3_error(code: str, message: str = "Access Denied", status: int = 403) -> Callable[..., None]:
    def fault(handler: Handler, response: Response) -> None:
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        body = b"" if handler.command == "HEAD" else body
        handler.send(Response(status, [("Content-Type", "application/xml")], body))

    return fault


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (s3_error("InvalidObjectState"), "it is archived: restore it"),
        (s3_error("KMS.DisabledException", status=400), r"kms:Decrypt on the key.*enabled"),
        (
            s3_error("AccessDenied", "x is not authorized to perform: kms:Decrypt on resource: y"),
            "allow kms:Decrypt",
        ),
        (
            s3_error(
                "AccessDenied",
                "x is not authorized to perform: s3:GetObject on resource: y with an explicit deny"
                " in a service control policy",
            ),
            "allow s3:GetObject; the service control policy denies it",
        ),
    ],
    ids=["archived", "disabled key", "key", "policy"],
)
def test_access_denied_names_its_cause_and_is_not_retried(
    uri: str, proxy: FaultProxy, tmp_path: Path, fault: Callable[..., None], cause: str
) -> None:
    proxy.inject("GET", WEIGHTS, fault, times=999)
    with pytest.raises(ModelUnavailable, match=cause) as caught:
        download(uri, tmp_path)
    assert "ListBucket" not in caught.value.message


def test_a_kms_key_without_permission_is_detected(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    uri = bucket.upload(model_dir, "m", ServerSideEncryption="aws:kms")
    proxy.inject("GET", WEIGHTS, s3_error("AccessDenied"), times=999)
    with pytest.raises(AccessDenied, match="kms:Decrypt"):
        download(uri, tmp_path)


def test_a_requester_pays_bucket_is_detected(uri: str, proxy: FaultProxy, tmp_path: Path) -> None:
    def require_payment(handler: Handler, response: Response) -> None:
        is_paid = handler.headers["x-amz-request-payer"] == "requester"
        handler.send(response) if is_paid else s3_error("AccessDenied")(handler, response)

    proxy.inject("GET", "", require_payment, times=999)
    proxy.inject("HEAD", "", require_payment, times=999)
    with pytest.raises(AccessDenied, match="requester pays"):
        download(uri, tmp_path)


def test_a_long_listing_is_not_read_completely(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    def endless(handler: Handler, response: Response) -> None:
        more = b"<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
        body = response.body.replace(b"<IsTruncated>false</IsTruncated>", more)
        assert more in body
        handler.send(Response(200, [("Content-Type", "application/xml")], body))

    proxy.inject("GET", "list-type=2", endless, times=999)
    assert same_files(download(uri, tmp_path).path, model_dir)
    assert len([entry for entry in proxy.log if "list-type" in entry.path]) == 1


def test_a_listing_ends_at_the_deadline_with_an_error(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    from time import monotonic

    proxy.inject("GET", "list-type=2", stall(0), times=999)
    with pytest.raises(DownloadFailed, match=r"the deadline passed.*incomplete file list"):
        to_directory(uri, str(tmp_path), deadline=monotonic() + 0.7, show=Silent)
    assert len(proxy.log) <= 1


def test_head_requests_end_at_the_deadline(uri: str, proxy: FaultProxy, tmp_path: Path) -> None:
    store, state = s3.S3(uri), transfer.DownloadState()
    proxy.inject("GET", "list-type=2", status(403))
    proxy.inject("HEAD", "", after(state.stop))
    with pytest.raises(transfer.Stopped):
        store.find(["config.json", WEIGHTS], state)
    assert len([entry for entry in proxy.log if entry.method == "HEAD"]) == 1


def test_an_interrupted_file_is_resumed(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    size = (model_dir / WEIGHTS).stat().st_size
    last = f"bytes={size // 10_000 * 10_000}-"

    class UntilTheLast(Silent):
        interval = 0.1

        def show(self, state: transfer.DownloadState) -> None:
            if state.total and state.received >= state.total - size % 10_000:
                raise KeyboardInterrupt

    def stall_or_forward(handler: Handler, response: Response) -> None:
        stalls = str(handler.headers["Range"]).startswith(last)
        (stall(0) if stalls else forward)(handler, response)

    proxy.inject("GET", WEIGHTS, stall_or_forward, times=999)
    with pytest.raises(KeyboardInterrupt):
        to_directory(uri, str(tmp_path), show=UntilTheLast)
    with FaultProxy(proxy.upstream) as second, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", second.url)
        assert same_files(download(uri, tmp_path).path, model_dir)
        ranges = [bytes_of(entry.range) for entry in second.log if entry.range]
    assert 0 < sum(ranges) < size
    assert leftovers(tmp_path) == []


def test_a_partial_file_that_has_changed_is_not_resumed(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    proxy.inject("GET", WEIGHTS, status(404))
    with pytest.raises(ModelNotFound):
        download(uri, tmp_path)
    for path in (tmp_path / "incoming").glob("*/parts/*"):
        path.write_bytes(b"x" * path.stat().st_size)
    assert same_files(download(uri, tmp_path).path, model_dir)
