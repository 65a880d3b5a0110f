"""The context object (AWS Lambda Developer Guide, "Python context object"), as in awslambdaric."""

import json
import os
import sys
from time import time

from gpt2core.startup.slim_typing import Any
from handler.runtime.api import Invocation
from handler.runtime.payload import InvalidEvent

# Fields of W3C Trace Context and Baggage that a client may pass.
_W3C_FIELDS = ("traceparent", "tracestate", "baggage")


class _Fields:
    """An object with fields of a JSON object; missing fields are None."""

    def __init__(self, fields: dict[str, Any], **names: str) -> None:
        for name, key in names.items():
            setattr(self, name, fields.get(key))

    def __repr__(self) -> str:
        return f"{type(self).__name__}([{','.join(f'{k}={v}' for k, v in vars(self).items())}])"


class CognitoIdentity(_Fields):
    """The identity of a caller from a Cognito identity pool."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(
            fields,
            cognito_identity_id="cognitoIdentityId",
            cognito_identity_pool_id="cognitoIdentityPoolId",
        )


class Client(_Fields):
    """The app that used AWS's mobile SDK."""

    def __init__(self, fields: dict[str, Any]) -> None:
        names = ("installation_id", "app_title", "app_version_name", "app_version_code",
                 "app_package_name")  # fmt: skip
        super().__init__(fields, **{name: name for name in names})


class ClientContext(_Fields):
    """Information from the client; the caller chooses `custom`."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields, custom="custom", env="env", client="client")
        client = fields.get("client")
        self.client = None if client is None else Client(client)


class Context:
    """An invocation and its function.

    `accepts_streams` means that the reply may be `handler.runtime.api.Streamed`.

    Raises:
        InvalidEvent: a header of the invocation is not a JSON object.
    """

    accepts_streams = True

    def __init__(self, invocation: Invocation) -> None:
        headers, environ = invocation.headers, os.environ
        self.aws_request_id = invocation.request_id
        self.log_group_name = environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
        self.function_name = environ.get("AWS_LAMBDA_FUNCTION_NAME")
        self.memory_limit_in_mb = environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.function_version = environ.get("AWS_LAMBDA_FUNCTION_VERSION")
        self.invoked_function_arn = headers.get("lambda-runtime-invoked-function-arn")
        client = _json_header(invocation, "client-context")
        w3c = (client or {}).pop("w3c", None)
        self._w3c = {
            name: w3c[name]
            for name in (_W3C_FIELDS if isinstance(w3c, dict) else ())
            if isinstance(w3c.get(name), str)
        }
        self.client_context = None if client is None else ClientContext(client)
        self.identity = CognitoIdentity(_json_header(invocation, "cognito-identity") or {})
        self.tenant_id = headers.get("lambda-runtime-aws-tenant-id")
        self._deadline_ms = int(headers.get("lambda-runtime-deadline-ms", "0") or 0)

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda stops the function."""
        return max(0, self._deadline_ms - int(time() * 1000))

    def w3c(self) -> dict[str, str]:
        """The trace context from the client."""
        return dict(self._w3c)

    def log(self, msg: object) -> None:
        """Write a message to the function's log."""
        sys.stdout.write(str(msg))
        sys.stdout.flush()  # the sandbox may be frozen before the buffer is full

    def __repr__(self) -> str:
        fields = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return f"LambdaContext([{','.join(f'{k}={v}' for k, v in fields.items())}])"


def _json_header(invocation: Invocation, name: str) -> dict[str, Any] | None:
    value = invocation.headers.get(f"lambda-runtime-{name}")
    try:
        found = json.loads(value) if value else None
    except (ValueError, RecursionError):
        raise InvalidEvent(f"the invocation's {name} is not JSON") from None
    if found is not None and not isinstance(found, dict):
        raise InvalidEvent(f"the invocation's {name} is not an object")
    return found
