"""The causes of S3's errors, for operators."""

from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from handler.aws import bucket_and_prefix, classify


def answered(status: int, code: str, message: str = "Access Denied") -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "GetObject")


@pytest.mark.parametrize(
    ("status", "code", "cause"),
    [
        (403, "AccessDenied", "denied"),
        (403, "403", "denied"),  # a HEAD has no body
        (403, "InvalidObjectState", "archived"),
        (400, "KMS.DisabledException", "kms"),
        (400, "KMS.KMSInvalidStateException", "kms"),
        (403, "ExpiredToken", "credentials"),
        (403, "RequestTimeTooSkewed", "credentials"),
        (404, "NoSuchBucket", "missing"),
        (412, "PreconditionFailed", "changed"),
        (503, "SlowDown", "transient"),
        (502, "BadGateway", "transient"),
        (301, "PermanentRedirect", "unknown"),
    ],
)
def test_the_error_code_takes_precedence_over_the_status(
    status: int, code: str, cause: str
) -> None:
    assert classify(answered(status, code)).cause == cause


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        (
            "is not authorized to perform: kms:Decrypt on resource: arn:aws:kms:x",
            "allow kms:Decrypt",
        ),
        (
            "is not authorized to perform: s3:GetObject on resource: x with an explicit deny in a"
            " VPC endpoint policy",
            "allow s3:GetObject",
        ),
        ("is not authorized to perform: s3express:CreateSession on x", "allow s3express:Create"),
        ("Bucket is a Requester Pays bucket", "requester pays"),
    ],
)
def test_access_denied_reports_the_reason_without_names(message: str, advice: str) -> None:
    user = "User: arn:aws:sts::123456789012:assumed-role/secret-role/function "
    found = classify(answered(403, "AccessDenied", user + message))
    assert advice in found.advice
    assert "arn:" not in str(found)
    assert "secret-role" not in str(found)


def test_access_denied_names_the_kind_of_policy() -> None:
    message = (
        "not authorized to perform: s3:GetObject with an explicit deny in a resource-based policy"
    )
    assert (
        "resource-based policy denies it" in classify(answered(403, "AccessDenied", message)).advice
    )


def test_errors_without_a_response_are_classified() -> None:
    assert classify(NoCredentialsError()).cause == "credentials"
    assert classify(EndpointConnectionError(endpoint_url="http://x")).cause == "transient"
    assert classify(OSError("reset")).cause == "transient"
    assert classify(ValueError("a setting")).cause == "unknown"


@pytest.mark.parametrize(
    ("uri", "prefix"),
    [
        ("s3://bucket", ""),
        ("s3://bucket/", ""),
        ("s3://bucket/a/b", "a/b/"),
        ("s3://bucket/a/b/", "a/b/"),
        ("s3://bucket//a", "/a/"),
        ("s3://bucket//", "/"),
        ("s3://bucket/a//b", "a//b/"),
        ("s3://bucket/a//", "a//"),
    ],
)
def test_a_prefix_is_used_unchanged(uri: str, prefix: str) -> None:
    assert bucket_and_prefix(uri) == ("bucket", prefix)
