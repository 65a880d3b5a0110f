"""Objects in S3: files of prompts, and the results below GPT2_RESULTS, `s3://bucket/prefix`.

The name of a result depends only on the message id, or on the file: processing it twice writes the
same bytes to the same object. The metadata `x-amz-meta-model-revision` has the model of a result.
The function needs
`s3:PutObject`, `s3:GetObject`, `s3:DeleteObject` and `s3:AbortMultipartUpload` there, and
`s3:ListBucket` on the bucket to tell a missing object from a forbidden one.
"""

from collections.abc import Callable
from hashlib import sha256

from gpt2core.startup.slim_typing import Any, NamedTuple
from handler import aws
from handler.errors import ObjectGone, ObjectUnavailable, ResultsUnavailable
from handler.items import S3Object
from handler.settings import Settings

READ_TIMEOUT_S = 20
ATTEMPTS = 5
CONNECTIONS = 8
MAX_KEY_BYTES = 1024  # Amazon S3 User Guide, "Naming Amazon S3 objects"
CHECKPOINT = ".checkpoint"
REVISION = "model-revision"
JSON = "application/json"
JSONL = "application/jsonl"


class Head(NamedTuple):
    """The metadata of a file."""

    size: int
    etag: str
    encoding: str
    """Its `Content-Encoding`; "" if it has none."""


class Storage:
    """Reads files of prompts; reads and writes objects below GPT2_RESULTS.

    Every method that reads or writes results may raise `ResultsUnavailable`.
    """

    def __init__(self, settings: Settings) -> None:
        if not settings.results:
            raise ResultsUnavailable(
                "GPT2_RESULTS is not set: set it to s3://bucket/prefix, where the results go",
                param="GPT2_RESULTS",
            )
        self.bucket, self.prefix = aws.bucket_and_prefix(settings.results)
        self._client = aws.s3_client(READ_TIMEOUT_S, ATTEMPTS, CONNECTIONS)

    def uri(self, name: str) -> str:
        """The address of `name`."""
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def results_name(self, found: S3Object) -> str:
        """The name of the results of a file. A digest replaces the end of an overlong key."""
        ending = f".{found.etag}.results.jsonl"
        return shortened(found.key, len((self.prefix + ending + CHECKPOINT).encode())) + ending

    def revision_of(self, name: str) -> str | None:
        """The revision of the model that made `name`, "" if unknown; None if it does not exist."""
        reply = self._optional("head_object", name)
        return reply["Metadata"].get(REVISION, "") if reply else None

    def read(self, name: str) -> bytes | None:
        """The content of `name`; None if it does not exist."""
        reply = self._optional("get_object", name)
        return reply["Body"].read() if reply else None

    def write(self, name: str, content: bytes, revision: str, content_type: str = JSON) -> None:
        """Write `name`, made by the model of that revision; "" if by none."""
        metadata = {REVISION: revision} if revision else {}
        self._call("put_object", name, Body=content, ContentType=content_type, Metadata=metadata)

    def delete(self, name: str) -> None:
        """Delete `name` if it exists."""
        self._call("delete_object", name)

    def create_multipart_upload(self, name: str, revision: str) -> str:
        """Start a multipart upload of `name`; returns its id."""
        metadata = {REVISION: revision}
        upload = self._call("create_multipart_upload", name, ContentType=JSONL, Metadata=metadata)
        return str(upload["UploadId"])

    def upload_part(self, name: str, upload: str, number: int, content: bytes) -> str | None:
        """Write one part; returns its ETag, or None if the upload no longer exists."""
        part = {"UploadId": upload, "PartNumber": number, "Body": content}
        reply = self._optional("upload_part", name, **part)
        return str(reply["ETag"]) if reply else None

    def complete_multipart_upload(self, name: str, upload: str, etags: list[str]) -> bool:
        """Complete the upload of `name`; False if it no longer exists."""
        parts = {"Parts": [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]}
        end = {"UploadId": upload, "MultipartUpload": parts}
        return self._optional("complete_multipart_upload", name, **end) is not None

    def abort_multipart_upload(self, name: str, upload: str) -> None:
        """Abort an upload if it still exists."""
        self._optional("abort_multipart_upload", name, UploadId=upload)

    def head(self, found: S3Object) -> Head:
        """The metadata of a file, which must be the version that its event names.

        Raises:
            ObjectGone: it was deleted or replaced.
            ObjectUnavailable: access is denied, or S3 does not answer.
        """
        reply = _read(lambda: self._client.head_object(**_pinned(found)))
        encoding = reply.get("ContentEncoding", "")
        return Head(reply["ContentLength"], reply["ETag"].strip('"'), encoding)

    def read_range(self, found: S3Object, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end` of that version of a file.

        Raises:
            ObjectGone, ObjectUnavailable: as `head`; or the bytes do not arrive.
        """

        def attempt() -> bytes:
            return b"".join(aws.read_range(self._client, _pinned(found), begin, end))

        for _ in range(ATTEMPTS - 1):  # boto3 retries requests, but not responses that end early
            try:
                return attempt()
            except aws.request_errors() as error:
                if aws.classify(error).answer:
                    break
        data: bytes = _read(attempt)
        return data

    def _call(self, operation: str, name: str, **arguments: Any) -> Any:
        where = {"Bucket": self.bucket, "Key": self.prefix + name}
        try:
            return getattr(self._client, operation)(**where, **arguments)
        except aws.request_errors() as error:
            cause, answer, advice = aws.classify(error)
            kind = (
                _Missing
                if cause == "missing" and "NoSuchBucket" not in answer
                else ResultsUnavailable
            )
            advice = advice or (
                "check the bucket, and that the function is allowed s3:PutObject, s3:GetObject,"
                " s3:DeleteObject and s3:AbortMultipartUpload there and s3:ListBucket on the bucket"
            )
            raise kind(
                f"{self.uri('')}: {operation} failed ({answer or type(error).__name__}): {advice}",
                param="GPT2_RESULTS",
            ) from None

    def _optional(self, operation: str, name: str, **arguments: Any) -> Any:
        """Like `_call`; None if there is no such object or upload."""
        try:
            return self._call(operation, name, **arguments)
        except _Missing:
            return None


class _Missing(ResultsUnavailable):
    """There is no such object or upload."""


def shortened(text: str, others: int) -> str:
    """`text`, shortened if a key with `others` more bytes would be too long for S3."""
    room = MAX_KEY_BYTES - others
    if len(text.encode()) <= room:
        return text
    digest = sha256(text.encode()).hexdigest()
    return f"{text.encode()[: room - len(digest) - 1].decode(errors='ignore')}-{digest}"


def _pinned(found: S3Object) -> dict[str, str]:
    pinned = {"Bucket": found.bucket, "Key": found.key}
    if found.version:
        pinned["VersionId"] = found.version
    if found.etag:
        pinned["IfMatch"] = f'"{found.etag}"'
    return pinned


def _read(request: Callable[[], Any]) -> Any:
    try:
        return request()
    except aws.request_errors() as error:
        cause, answer, advice = aws.classify(error)
        if cause == "missing":
            raise ObjectGone("the object no longer exists") from None
        if cause == "changed":
            raise ObjectGone("the object has changed since its event") from None
        # Without s3:ListBucket, S3 answers 403 also for a key that does not exist.
        advice = advice or (
            "the function needs s3:GetObject and s3:GetObjectVersion in its bucket"
            + (", or the object no longer exists" if cause == "denied" else "")
        )
        raise ObjectUnavailable(
            f"the object cannot be read ({answer or type(error).__name__}): {advice}"
        ) from None
