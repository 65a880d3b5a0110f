"""A model at `s3://bucket/prefix`: parallel range requests, pinned to one ETag.

Endpoint, region and credentials come from the standard AWS settings (AWS_ENDPOINT_URL_S3, …).
Requires only `s3:GetObject`. With `s3:ListBucket`, S3 distinguishes missing from forbidden objects.
"""

import base64
import binascii
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from functools import cached_property
from hashlib import sha256
from typing import Any

from handler import aws
from handler.errors import AccessDenied, ModelChanged, ModelNotFound, ModelUnavailable
from handler.store.part import Part, write
from handler.store.transfer import DownloadState, RemoteFile, Transient, map_in_order, retry

# One connection to S3 reaches about 90 MB/s, in Lambda 78: several compensate for slow ones.
CONNECTIONS = 8
PART_BYTES = 16 << 20  # a request costs 2 ms of CPU; a failure repeats at most one part
READ_TIMEOUT_S = 10  # seconds without data until a read fails


class S3:
    """The objects directly below one prefix of a bucket."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._bucket, self._prefix = aws.bucket_and_prefix(uri)
        self._listed: dict[str, RemoteFile] | None = None
        self._is_listed = False
        # The ETags of directory buckets are not MD5 (Amazon S3 API Reference, "Object").
        self._etags_are_md5 = not self._bucket.endswith("--x-s3")
        self._lock = threading.Lock()

    def find(self, names: Iterable[str], state: DownloadState) -> dict[str, RemoteFile]:
        """Sizes and ETags, from one page of a listing or from HEAD requests.

        HEAD requests are used if listing is forbidden or the listing has more than one page.
        """
        if not self._is_listed:
            try:
                page = self._call("list_objects_v2", Prefix=self._prefix, Delimiter="/")
                if not page.get("IsTruncated"):
                    items = page.get("Contents", ())
                    files = [
                        _file(i["Key"].removeprefix(self._prefix), i["Size"], i) for i in items
                    ]
                    self._listed = {file.name: file for file in files}
            except AccessDenied as error:
                if error.param or aws.REQUESTER_PAYS in error.message:  # applies to all requests
                    raise
            self._is_listed = True
        if self._listed is not None:
            return {name: self._listed[name] for name in names if name in self._listed}
        found = {}
        denied = None
        for name in names:
            state.check()
            try:
                head = self._call("head_object", name)
            except ModelNotFound:
                continue
            except AccessDenied as error:  # or missing: S3 does not tell without s3:ListBucket
                denied = denied or (name, error)
                continue
            found[name] = _file(name, head["ContentLength"], head)
        if not found and denied:
            raise self._with_advice(*denied)
        return found

    def source(self, files: Iterable[RemoteFile]) -> str:
        """The URI and a digest of the ETags."""
        versions = "\n".join(sorted(f"{file.name}\0{file.version}" for file in files))
        return f"{self.uri}@{sha256(versions.encode()).hexdigest()[:16]}"

    def with_digests(self, file: RemoteFile) -> RemoteFile:
        """Add S3's checksums of an object from a HEAD request, unless a manifest has its SHA-256.

        Checksums of the parts of a multipart upload cannot be compared with the whole object. A
        plain ETag is the MD5 unless the object is encrypted with KMS or a customer key (Amazon S3
        API Reference, "Object"); S3-compatible stores may send anything. CRC64NVME is not verified:
        no dependency computes it fast enough.
        """
        if "sha256" in file.digests:
            return file
        try:
            head = self._call(
                "head_object", file.name, IfMatch=file.version, ChecksumMode="ENABLED"
            )
        except AccessDenied:  # without a body; the first GET reports the cause
            return file
        digests = {}
        if head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            for name in ("SHA256", "SHA1", "CRC32"):
                with suppress(KeyError, binascii.Error):  # "…-5" is a multipart checksum
                    value = base64.b64decode(head[f"Checksum{name}"], validate=True)
                    digests[name.lower()] = value.hex()
        etag = file.version.strip('"')
        plain = head.get("ServerSideEncryption", "AES256") == "AES256" and self._etags_are_md5
        plain = plain and not head.get("SSECustomerAlgorithm") and not digests
        if plain and len(etag) == 32 and set(etag) <= set("0123456789abcdef"):
            digests["md5"] = etag
        return file._replace(digests=digests)

    def fetch(self, file: RemoteFile, part: Part, state: DownloadState, again: bool) -> None:
        """Fetch ranges in parallel, and hash them in order while later ones download.

        A second attempt uses other ranges: a proxy that corrupts the same range again then gives
        another digest.
        """
        step = max(1, min(PART_BYTES, file.size) * 2 // 3) if again else PART_BYTES
        begins = range(part.size, file.size, step)
        ranges = [(begin, min(file.size, begin + step)) for begin in begins]
        state.check()
        for end in map_in_order(
            lambda wanted: self._fetch_range(file, *wanted, part, state), ranges, CONNECTIONS, state
        ):
            part.hash_to(end)

    def _fetch_range(
        self, file: RemoteFile, at: int, end: int, part: Part, state: DownloadState
    ) -> int:
        """Write bytes `at` to `end`; a retry continues where the previous attempt failed."""
        # Pinned by ETag: a version id would need another permission than `s3:GetObject`.
        where = {"Bucket": self._bucket, "Key": self._prefix + file.name, "IfMatch": file.version}

        def attempt() -> int:
            nonlocal at
            with closing(aws.read_range(self._client, where, at, end, file.size)) as pieces:
                while piece := self._next(pieces, file.name):
                    state.advance(
                        len(piece)
                    )  # raises once the download is stopped, before the write
                    write(fd, piece, at)
                    at += len(piece)
            return end

        try:
            with part.opened() as fd:
                return retry(attempt, state, lambda: at)
        except AccessDenied as error:
            raise self._with_advice(file.name, error) from None

    def _next(self, pieces: Iterator[bytes], name: str) -> bytes:
        try:
            return next(pieces, b"")
        except aws.request_errors() as error:
            raise self._error(name, error) from None

    @cached_property
    def _shared_client(self) -> Any:
        # `retry` repeats requests because it observes the deadline.
        return aws.s3_client(
            READ_TIMEOUT_S,
            attempts=1,
            connections=2 * CONNECTIONS,
            response_checksum_validation="when_required",  # ranges have no checksum
        )

    @property
    def _client(self) -> Any:
        with self._lock:
            return self._shared_client

    def _call(self, operation: str, name: str | None = None, **arguments: Any) -> Any:
        """One request about an object or the bucket; maps boto3's errors to ours."""
        if name:
            arguments["Key"] = self._prefix + name
        try:
            return getattr(self._client, operation)(Bucket=self._bucket, **arguments)
        except aws.request_errors() as error:
            raise self._error(name, error) from None

    def _error(self, name: str | None, error: Exception) -> Exception:
        """Our error for one of boto3's, whose messages are not included."""
        what = f"{self.uri}: {name}" if name else self.uri
        cause, answer, advice = aws.classify(error)
        if isinstance(error, aws.WrongRange):
            return Transient(f"{what}: {error}")
        reason = f"S3 returned {answer}" if answer else type(error).__name__
        what = f"{what}: {reason}"
        if cause == "transient":
            return Transient(what)
        if cause == "changed":
            return ModelChanged(
                f"{what}: the object changed during the download: try again, and publish new models"
                " under a new prefix"
            )
        if cause == "missing":
            return ModelNotFound(f"{what}: the object or bucket does not exist")
        if cause == "credentials":
            return AccessDenied(f"{what}: {advice}", param="AWS_ACCESS_KEY_ID")
        if cause in ("denied", "kms"):
            return AccessDenied(f"{what}: {advice}") if advice else _UnknownDenial(what)
        return ModelUnavailable(
            f"{what}: {advice or 'check the bucket, its region and the AWS_* variables'}"
        )

    def _with_advice(self, name: str, denied: AccessDenied) -> AccessDenied:
        """The error of a 403 response, with the cause if it can be found."""
        if not isinstance(denied, _UnknownDenial):
            return denied
        advice = aws.why_denied(self._client, {"Bucket": self._bucket, "Key": self._prefix + name})
        advice = advice or (
            "allow s3:GetObject on it and s3:ListBucket on the bucket, and check the credentials"
        )
        return AccessDenied(f"{denied.message}: {advice}")


class _UnknownDenial(AccessDenied):
    """A 403 response without a cause."""


def _file(name: str, size: int, item: dict[str, Any]) -> RemoteFile:
    return RemoteFile(name, size, str(item.get("ETag", "")))
