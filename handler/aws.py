"""Amazon S3 through boto3: a client, reads of one version of an object, causes of errors."""

import re
from collections.abc import Generator
from contextlib import closing
from typing import Any, Literal, NamedTuple

CONNECT_TIMEOUT_S = 5
READ_BYTES = 1 << 20

Cause = Literal[
    "missing", "changed", "credentials", "archived", "kms", "denied", "transient", "unknown"
]
# Amazon S3 API Reference, "Error responses"; AWS KMS's exceptions come as "KMS.…".
_CAUSES: dict[Cause, set[str]] = {
    "archived": {"InvalidObjectState"},
    "transient": {"408", "429", "SlowDown", "RequestTimeout", "Throttling", "ThrottlingException",
                  "RequestThrottled", "InternalError", "ServiceUnavailable"},
    "changed": {"412", "PreconditionFailed", "416", "InvalidRange"},
    "missing": {"404", "NoSuchKey", "NoSuchBucket", "NotFound", "NoSuchVersion", "NoSuchUpload"},
    "credentials": {"401", "ExpiredToken", "InvalidToken", "InvalidAccessKeyId",
                    "SignatureDoesNotMatch", "RequestTimeTooSkewed", "TokenRefreshRequired"},
    "denied": {"403", "AccessDenied", "Forbidden", "AllAccessDisabled"},
}  # fmt: skip
_ADVICE: dict[Cause, str] = {
    "credentials": "S3 rejected the credentials; renew or correct them",
    "archived": "it is archived: restore it, or copy it to a storage class with immediate access",
    "kms": "its KMS key cannot be used: allow kms:Decrypt on the key, and check that it is enabled",
}
# Messages of AWS name roles and resources: only the action and the kind of policy are repeated.
_ACTION = re.compile(r"not authorized to perform: ([a-z0-9-]{1,40}:[A-Za-z]{1,60})")
_POLICY = re.compile(r"explicit deny in an? ([a-z -]{1,40}policy)")


class Failure(NamedTuple):
    """Why a request to S3 failed, without the message of AWS."""

    cause: Cause
    answer: str
    """HTTP status and error code; empty if there was no answer."""
    advice: str
    """How to fix it, if the answer shows that; else empty."""


def s3_client(read_timeout_s: float, attempts: int, connections: int, **config: Any) -> Any:
    """An S3 client with the standard AWS configuration.

    A request fails after `read_timeout_s` seconds without a byte; with more than one of `attempts`,
    boto3 retries errors that may be temporary. `config`: further settings of botocore.
    """
    import boto3  # 170 ms
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=read_timeout_s,
            max_pool_connections=connections,
            retries={"mode": "standard", "total_max_attempts": attempts},
            **config,
        ),
    )


def bucket_and_prefix(uri: str) -> tuple[str, str]:
    """The bucket and prefix of `s3://bucket/prefix`; slashes of the prefix stay as they are."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix if prefix.endswith("/") or not prefix else f"{prefix}/"


def read_range(
    client: Any, where: dict[str, str], begin: int, end: int, size: int | None = None
) -> Generator[bytes, None, None]:
    """Yield bytes `begin` to `end` of an object, of `size` bytes if known, as they arrive.

    `where` are arguments of `get_object`: bucket, key, and what pins the version (`IfMatch`).

    Raises:
        OSError: the answer is not this range, or ends early.
        Any of `request_errors()`.
    """
    reply = client.get_object(**where, Range=f"bytes={begin}-{end - 1}")
    with closing(reply["Body"]) as body:
        found, _, total = reply.get("ContentRange", "").partition("/")
        whole = (begin, end) == (0, size) and reply["ContentLength"] == size
        fits = found == f"bytes {begin}-{end - 1}" and total == str(size or total)
        if not fits and not whole:
            raise WrongRange("the response is not the requested range")
        while begin < end and (data := body.read(min(READ_BYTES, end - begin))):
            begin += len(data)
            yield data
    if begin < end:
        raise WrongRange(f"the response ended {end - begin} bytes early")


class WrongRange(OSError):
    """The response is not the requested range, or not all of it."""


def request_errors() -> tuple[type[Exception], ...]:
    """The exceptions that a request to AWS can raise; ValueError is for invalid settings."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    return BotoCoreError, ClientError, HTTPError, OSError, ValueError


def classify(error: Exception) -> Failure:
    """The cause of one of `request_errors()`, and how to fix it."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    if response:
        return _answered(response)
    from botocore import exceptions
    from urllib3.exceptions import HTTPError

    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return Failure(
            "credentials",
            "",
            "there are no AWS credentials: give the function a role, or set AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY",
        )
    transient = (
        exceptions.ConnectionError,  # refused, TLS, proxies
        exceptions.HTTPClientError,  # reset, timeouts
        exceptions.IncompleteReadError,
        exceptions.ResponseStreamingError,
        HTTPError,
        OSError,
    )
    return Failure("transient" if isinstance(error, transient) else "unknown", "", "")


def _answered(response: dict[str, Any]) -> Failure:
    error = response.get("Error", {})
    status = str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    code, message = str(error.get("Code", "")), str(error.get("Message", ""))
    answer = f"{status} {code}".strip() if code != status else status
    action, policy = _ACTION.search(message), _POLICY.search(message)
    if code.startswith("KMS.") or (action and action[1].startswith("kms:")):
        return Failure("kms", answer, _ADVICE["kms"])
    for name in (code, status):  # the code is the more exact one
        for cause, names in _CAUSES.items():
            if name in names:
                advice = _ADVICE.get(cause, "")
                if cause == "denied" and action:
                    advice = f"allow {action[1]}" + (
                        f"; the {policy[1]} denies it" if policy else ""
                    )
                elif cause == "denied" and "requester pays" in message.lower():
                    advice = REQUESTER_PAYS
                return Failure(cause, answer, advice)
    return Failure("transient" if status.startswith("5") else "unknown", answer, "")


REQUESTER_PAYS = (
    "the bucket charges the requester (requester pays), which this function does not support:"
    " copy the files to a bucket of your own"
)


def why_denied(client: Any, where: dict[str, str]) -> str:
    """How to fix a 403 without a cause, found by two more requests; "" if they do not show it.

    A HEAD needs no KMS key, and a bucket with requester pays accepts a request that agrees to pay.
    """
    for payer in ({}, {"RequestPayer": "requester"}):
        try:
            head = client.head_object(**where, **payer)
        except request_errors() as error:
            if not payer or classify(error).cause not in ("missing", "changed"):
                continue
            head = {}
        if payer:
            return REQUESTER_PAYS
        if str(head.get("ServerSideEncryption", "")).startswith("aws:kms"):
            return _ADVICE["kms"]
    return ""
