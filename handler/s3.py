"""A model at `s3://bucket/prefix`, by boto3: parallel ranged transfers, pinned to one ETag.

Endpoint, region and credentials come from AWS's usual settings (AWS_ENDPOINT_URL_S3, …).
Only `s3:GetObject` is needed; with `s3:ListBucket` a missing file can be told from a forbidden one.
"""

import base64
import binascii
import os
import threading
from collections.abc import Iterable
from functools import cached_property
from hashlib import sha256
from typing import Any

from handler.errors import AccessDenied, ModelChanged, ModelNotFound, ModelUnavailable
from handler.parallel import map_in_order
from handler.progress import Stopped, Watch
from handler.remote import READ_BYTES, Hasher, RemoteFile, Transient, persist

# One connection to S3 gives some 90 MB/s and a sandbox takes 78: several make up for slow ones.
CONNECTIONS = 8
PART_BYTES = 16 << 20  # a request costs 2 ms of our own; parts are what a failure repeats
FLUSH_BYTES = 64 << 20
CONNECT_TIMEOUT_S = 5
STALL_S = 10  # without a byte

_REFUSED = {"401", "ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch",
            "RequestTimeTooSkewed", "TokenRefreshRequired"}  # fmt: skip
_DENIED = {"403", "AccessDenied", "Forbidden", "AllAccessDisabled"}
_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound", "NoSuchVersion"}
_CHANGED = {"412", "PreconditionFailed", "416", "InvalidRange"}
_TRANSIENT = {"408", "429", "SlowDown", "RequestTimeout", "Throttling", "ThrottlingException",
              "RequestThrottled", "InternalError", "ServiceUnavailable"}  # fmt: skip


class S3:
    """The objects directly below one prefix of a bucket."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._may_list = True
        self._listed: dict[str, RemoteFile] | None = None
        self._lock = threading.Lock()

    def find(self, names: Iterable[str]) -> dict[str, RemoteFile]:
        """Sizes and ETags: from one listing, or asked for one by one where listing is forbidden."""
        if self._may_list and self._listed is None:
            try:
                self._listed = self._list()
            except AccessDenied as error:
                if error.param:  # there are no credentials, or none that are valid
                    raise
                self._may_list = False
        if self._listed is not None:
            return {name: self._listed[name] for name in names if name in self._listed}
        found = {}
        denied = None
        for name in names:
            try:
                head = self._call("head_object", name)
            except ModelNotFound:
                continue
            except AccessDenied as error:  # or not there: S3 does not tell who may not list
                denied = error
                continue
            found[name] = RemoteFile(name, head["ContentLength"], head["ETag"])
        if not found and denied:
            raise denied
        return found

    def source(self, files: Iterable[RemoteFile]) -> str:
        """The URI and a digest over the ETags."""
        versions = "\n".join(sorted(f"{file.name}\0{file.version}" for file in files))
        return f"{self.uri}@{sha256(versions.encode()).hexdigest()[:16]}"

    def fetch(self, file: RemoteFile, path: str, watch: Watch) -> str:
        """Fetch parts in parallel; the bytes are hashed in order while later ones arrive."""
        if "sha256" not in file.digests:
            pinned = _pinned(file) | {"ChecksumMode": "ENABLED"}
            head = persist(lambda: self._call("head_object", file.name, **pinned), watch)
            file = file._replace(digests={**_promised(head), **file.digests})
        hasher = Hasher(file)
        parts = [
            (begin, min(file.size, begin + PART_BYTES)) for begin in range(0, file.size, PART_BYTES)
        ]
        watch.check()
        output = _Output(path)
        with output:
            for end in map_in_order(
                lambda part: self._fetch_part(file, *part, output, watch), parts, CONNECTIONS
            ):
                hasher.read(output.fd, end)
                output.flush_ahead(end)
        return hasher.finish()

    def _fetch_part(
        self, file: RemoteFile, begin: int, end: int, output: "_Output", watch: Watch
    ) -> int:
        """Bytes `begin` to `end` of a file; an attempt goes on where the one before it failed."""
        at, what = begin, f"{self.uri}: {file.name}"

        def attempt() -> int:
            nonlocal at
            wanted = f"bytes={at}-{end - 1}"
            reply = self._call("get_object", file.name, Range=wanted, **_pinned(file))
            body = reply["Body"]
            try:
                if reply.get("ContentRange") != f"bytes {at}-{end - 1}/{file.size}" and (
                    (begin, end) != (0, file.size) or reply["ContentLength"] != file.size
                ):
                    raise Transient(f"{what}: the answer is not the range that was asked for")
                if begin == 0 and end == file.size and "ContentRange" not in reply:
                    at = 0
                while data := self._read(body, file.name):
                    if at + len(data) > end:
                        raise Transient(f"{what}: more bytes came than were asked for")
                    output.write(data, at)
                    at += len(data)
                    watch.advance(len(data))
            finally:
                body.close()
            if at < end:
                raise Transient(f"{what}: the answer ended {end - at} bytes early")
            return end

        with output:
            return persist(attempt, watch, lambda: at)

    def _list(self) -> dict[str, RemoteFile]:
        """Every object directly below the prefix."""
        files: dict[str, RemoteFile] = {}
        more: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=self._prefix, Delimiter="/", **more)
            for item in page.get("Contents", ()):
                name = item["Key"].removeprefix(self._prefix)
                files[name] = RemoteFile(name, item["Size"], item["ETag"])
            if not page.get("IsTruncated"):
                return files
            more = {"ContinuationToken": page["NextContinuationToken"]}

    @cached_property
    def _client(self) -> Any:
        import boto3  # 170 ms, only where something is downloaded
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            config=Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=STALL_S,
                max_pool_connections=2 * CONNECTIONS,
                retries={"total_max_attempts": 1},  # `persist` knows when the time is up
                response_checksum_validation="when_required",  # a range has none of its own
            ),
        )

    def _call(self, operation: str, name: str | None = None, **arguments: Any) -> Any:
        """One request about an object, or about the bucket; errors in our own words.

        AWS's messages are not repeated: only codes, which hold no credentials.
        """
        from botocore.exceptions import ClientError

        what = f"{self.uri}: {name}" if name else self.uri
        if name:
            arguments["Key"] = self._prefix + name
        try:
            with self._lock:
                client = self._client
            return getattr(client, operation)(Bucket=self._bucket, **arguments)
        except ClientError as error:
            status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
            raise _said(
                what, str(error.response.get("Error", {}).get("Code", "")), status
            ) from None
        except _request_errors() as error:
            raise _broken(what, error) from None

    def _read(self, body: Any, name: str) -> bytes:
        try:
            data: bytes = body.read(READ_BYTES)
        except _request_errors() as error:
            raise _broken(f"{self.uri}: {name}", error) from None
        return data


class _Output:
    """A file that several threads write, closed when the last of them leaves it.

    A thread may outlive its download; by then the number of a closed descriptor can be another's.
    """

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._users = 0
        self._flushing = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self.fd < 0:
                raise Stopped
            self._users += 1

    def flush_ahead(self, end: int) -> None:
        """Begin to bring to the disk what there is, so that the last flush has little to do."""
        if end - self._flushing >= FLUSH_BYTES:
            self._flushing = end
            threading.Thread(target=self._flush, daemon=True).start()

    def _flush(self) -> None:
        try:
            with self:
                os.fdatasync(self.fd)
        except (OSError, Stopped):  # the last flush will say it
            return

    def write(self, data: bytes, at: int) -> None:
        """Write all of `data`: a disk that fills up takes a part of it first, without an error."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self.fd, rest, at)
            rest, at = rest[written:], at + written

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                os.close(self.fd)
                self.fd = -1


def _pinned(file: RemoteFile) -> dict[str, str]:
    """Only this very content. An ETag does it with `s3:GetObject` alone, a version id does not."""
    return {"IfMatch": file.version}


def _promised(head: Any) -> dict[str, str]:
    """What S3 knows of an object's bytes, from a HEAD with checksums.

    Checksums over the parts of an upload say nothing of the whole. A plain ETag is the MD5 unless
    KMS encrypts the object (Amazon S3 API Reference, "Object"). CRC64NVME is not computed: nothing
    that we depend on does it at speed.
    """
    for field, name in (
        ("ChecksumSHA256", "sha256"),
        ("ChecksumSHA1", "sha1"),
        ("ChecksumCRC32", "crc32"),
    ):
        value = head.get(field, "")
        if value and "-" not in value and head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            try:
                return {name: base64.b64decode(value, validate=True).hex()}
            except binascii.Error:
                continue
    etag = head["ETag"].strip('"')
    plain = len(etag) == 32 and set(etag) <= set("0123456789abcdef")
    if plain and head.get("ServerSideEncryption", "AES256") == "AES256":
        return {} if head.get("SSECustomerAlgorithm") else {"md5": etag}
    return {}


def _said(what: str, code: str, status: str) -> Exception:
    """The error for S3's own answer."""
    said = {code, status}
    reason = f"S3 answered {status} {code}".rstrip()
    if said & _TRANSIENT or status.startswith("5"):
        return Transient(f"{what}: {reason}")
    if said & _CHANGED:
        return ModelChanged(
            f"{what} was replaced while it was downloaded ({reason}): try again, and publish a new"
            " model under a new prefix"
        )
    if said & _MISSING:
        return ModelNotFound(f"{what} is not there ({reason})")
    if said & _REFUSED:
        return AccessDenied(
            f"{what}: {reason}: the credentials are refused; renew or correct them",
            param="AWS_ACCESS_KEY_ID",
        )
    if said & _DENIED:
        return AccessDenied(
            f"{what}: {reason}: allow s3:GetObject there and s3:ListBucket on the bucket, and"
            " check the credentials"
        )
    return ModelUnavailable(f"{what}: {reason}: check the bucket's name and region")


def _request_errors() -> tuple[type[Exception], ...]:
    """What a request can end with when S3 has not answered it."""
    from botocore.exceptions import BotoCoreError
    from urllib3.exceptions import HTTPError

    return BotoCoreError, HTTPError, OSError, ValueError  # the last for settings that make no sense


def _broken(what: str, error: Exception) -> Exception:
    """The error for a request that got no answer, or half of one."""
    from botocore import exceptions
    from urllib3.exceptions import HTTPError

    kind = type(error).__name__
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return AccessDenied(
            f"{what}: there are no AWS credentials ({kind}): give the function a role, or set"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            param="AWS_ACCESS_KEY_ID",
        )
    if isinstance(
        error,
        (
            exceptions.ConnectionError,  # refused, TLS, proxies
            exceptions.HTTPClientError,  # reset, time-outs
            exceptions.IncompleteReadError,
            exceptions.ResponseStreamingError,
            HTTPError,
            OSError,
        ),
    ):
        return Transient(f"{what}: {kind}")
    return ModelUnavailable(f"{what}: S3 cannot be asked ({kind}): check the AWS settings")
