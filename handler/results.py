"""Where batches are written: objects below GPT2_RESULTS, `s3://bucket/prefix`, by boto3.

Names depend on the request alone, so that whoever does something twice writes the same bytes to the
same place. Needs `s3:PutObject` and `s3:GetObject` there, and `s3:ListBucket` to tell a missing
object from a forbidden one.
"""

from collections.abc import Callable
from typing import Any

from handler.batch_events import S3Object
from handler.errors import ObjectUnavailable, ResultsUnavailable
from handler.settings import Settings

CONNECT_TIMEOUT_S = 5
STALL_S = 20
ATTEMPTS = 5
CONNECTIONS = 8

_MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchVersion"}
_CHANGED = {"412", "PreconditionFailed", "416", "InvalidRange"}


def s3_client() -> Any:
    """A client that retries what a retry can help, with boto3's own pauses."""
    import boto3  # 170 ms
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=STALL_S,
            max_pool_connections=CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        ),
    )


class Results:
    """Objects below GPT2_RESULTS.

    Every method may raise `ResultsUnavailable`.
    """

    def __init__(self, settings: Settings, client: Any) -> None:
        if not settings.results:
            raise ResultsUnavailable(
                "GPT2_RESULTS is not set: name the place for results, s3://bucket/prefix",
                param="GPT2_RESULTS",
            )
        self.bucket, _, prefix = settings.results.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client = client

    def uri(self, name: str) -> str:
        """Where `name` is found."""
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def exists(self, name: str) -> bool:
        """Whether somebody has written `name`."""
        return self._call("head_object", name, missing=lambda: None) is not None

    def read(self, name: str) -> bytes | None:
        """The content of `name`, if there is any."""
        reply = self._call("get_object", name, missing=lambda: None)
        return reply["Body"].read() if reply else None

    def write(self, name: str, content: bytes, kind: str = "application/json") -> None:
        """Write `name` whole."""
        self._call("put_object", name, Body=content, ContentType=kind)

    def delete(self, name: str) -> None:
        """Remove `name`, if it is there."""
        self._call("delete_object", name)

    def begin_parts(self, name: str) -> str:
        """Begin to write `name` in parts, which nobody sees before its end; the upload's id."""
        reply = self._call("create_multipart_upload", name, ContentType="application/jsonl")
        return str(reply["UploadId"])

    def write_part(self, name: str, upload: str, number: int, content: bytes) -> str | None:
        """One part; returns its ETag, or None if the upload is over."""
        reply = self._call(
            "upload_part",
            name,
            missing=lambda: None,
            UploadId=upload,
            PartNumber=number,
            Body=content,
        )
        return str(reply["ETag"]) if reply else None

    def end_parts(self, name: str, upload: str, etags: list[str]) -> bool:
        """Publish `name`; False if the upload is over."""
        parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]
        return bool(
            self._call(
                "complete_multipart_upload",
                name,
                missing=lambda: None,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
            )
        )

    def _call(
        self, operation: str, name: str, missing: Callable[[], Any] | None = None, **arguments: Any
    ) -> Any:
        where = {"Bucket": self.bucket, "Key": self.prefix + name}
        try:
            return getattr(self._client, operation)(**where, **arguments)
        except request_errors() as error:
            codes = error_codes(error)
            if missing and codes & (_MISSING | {"NoSuchUpload"}):
                return missing()
            reason = " ".join(sorted(codes)) or type(error).__name__
            raise ResultsUnavailable(
                f"{self.uri('')}: {operation} failed ({reason}): check the bucket, and that the"
                " function may s3:PutObject, s3:GetObject and s3:ListBucket there",
                param="GPT2_RESULTS",
            ) from None


def head_of(client: Any, found: S3Object) -> tuple[int, str]:
    """Size and ETag of an object, which must be the one of its event.

    Raises:
        ObjectUnavailable: it is not there any more, another one is, or it may not be read.
    """
    reply = _read(found, lambda: client.head_object(**_pinned(found)))
    return reply["ContentLength"], reply["ETag"].strip('"')


def range_of(client: Any, found: S3Object, begin: int, end: int) -> bytes:
    """Bytes of an object, as it was.

    Raises:
        ObjectUnavailable: as `head_of`; or they do not arrive.
    """

    def attempt() -> bytes:
        wanted = f"bytes={begin}-{end - 1}"
        reply = client.get_object(**_pinned(found), Range=wanted)
        data: bytes = reply["Body"].read()
        if len(data) != end - begin:
            raise OSError("not all of the range has come")
        return data

    for _ in range(ATTEMPTS - 1):  # boto3 repeats requests, but not answers that break off
        try:
            return attempt()
        except request_errors() as error:
            if error_codes(error):
                break
    data: bytes = _read(found, attempt)
    return data


def _pinned(found: S3Object) -> dict[str, str]:
    pinned = {"Bucket": found.bucket, "Key": found.key}
    if found.version:
        pinned["VersionId"] = found.version
    if found.etag:
        pinned["IfMatch"] = f'"{found.etag}"'
    return pinned


def _read(found: S3Object, request: Callable[[], Any]) -> Any:
    what = f"s3://{found.bucket}/{found.key}"
    try:
        return request()
    except request_errors() as error:
        codes = error_codes(error)
        if codes & _MISSING:
            raise ObjectUnavailable(f"{what} is not there any more") from None
        if codes & _CHANGED:
            raise ObjectUnavailable(f"{what} has changed since its event") from None
        reason = " ".join(sorted(codes)) or type(error).__name__
        raise ObjectUnavailable(
            f"{what} cannot be read ({reason}): the function needs s3:GetObject there, and"
            " s3:GetObjectVersion"
        ) from None


def request_errors() -> tuple[type[Exception], ...]:
    """What a request to AWS can end with."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    return BotoCoreError, ClientError, HTTPError, OSError


def error_codes(error: Exception) -> set[str]:
    """What AWS has answered, less its message, which is not repeated; empty if it has not."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    return {str(response.get("Error", {}).get("Code", "")), str(status)} - {""}
