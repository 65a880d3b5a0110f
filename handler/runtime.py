"""The Lambda runtime: `python -m handler.runtime`, the image's entry point.

Asks the Runtime API for an event, gives it to `lambda_handler`, hands over what that returns, and
again. What awslambdaric does for this function, in 5 ms instead of 26; it works in its place, too:
`python -m awslambdaric handler.app.lambda_handler`. Outside of Lambda, where there is no Runtime
API, it serves the path that Lambda's own emulator serves.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from time import time
from typing import Any, NamedTuple, Protocol

from handler.runtime_api import Invocation, RuntimeApi, RuntimeApiError, Streamed, error_body

DEFAULT_HANDLER = "handler.app.lambda_handler"
LOCAL_PORT = 8080
# Exit codes of AWS's own runtimes.
EXIT_INIT, EXIT_BEFORE_SNAPSHOT, EXIT_AFTER_RESTORE = 1, 64, 65
Handler = Callable[[Any, Any], Any]


class Api(Protocol):
    """What takes the answers: the Runtime API, or `handler.invocations` in its place."""

    def respond(self, invocation: Invocation, body: bytes, content_type: str) -> None:
        """Hand over a reply."""

    def stream(self, invocation: Invocation, chunks: Iterable[bytes], content_type: str) -> None:
        """Hand over a reply piece by piece."""

    def fail(self, invocation: Invocation, body: bytes, kind: str, xray_cause: str) -> None:
        """Hand over an error."""


class Identity(NamedTuple):
    """Who invoked through a Cognito identity pool."""

    cognito_identity_id: str | None = None
    cognito_identity_pool_id: str | None = None


class Context:
    """AWS's context object (AWS Lambda Developer Guide, "Python context object")."""

    def __init__(self, invocation: Invocation) -> None:
        headers, environ = invocation.headers, os.environ
        self.aws_request_id = invocation.request_id
        self.invoked_function_arn = headers.get("lambda-runtime-invoked-function-arn")
        self.tenant_id = headers.get("lambda-runtime-aws-tenant-id")
        self.function_name = environ.get("AWS_LAMBDA_FUNCTION_NAME")
        self.function_version = environ.get("AWS_LAMBDA_FUNCTION_VERSION")
        self.memory_limit_in_mb = environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.log_group_name = environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
        self.client_context = _json_header(invocation, "client-context")
        identity = _json_header(invocation, "cognito-identity") or {}
        self.identity = Identity(
            identity.get("cognitoIdentityId"), identity.get("cognitoIdentityPoolId")
        )
        self._deadline_ms = int(headers.get("lambda-runtime-deadline-ms", "0") or 0)

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the function is stopped."""
        return max(0, self._deadline_ms - int(time() * 1000))


class InvalidEvent(Exception):
    """An event, or what came with it, that is not JSON."""


class InvalidReply(Exception):
    """A reply that cannot be written as JSON."""


def run(api: RuntimeApi, name: str = DEFAULT_HANDLER) -> int:
    """Answer events until nobody has any more; returns an exit code.

    Raises:
        RuntimeApiError: the Runtime API cannot be reached, or does not speak as it should.
    """
    try:
        handler = _load(name)
    except Exception as error:  # noqa: BLE001 (reported to Lambda)
        return _not_started(api.fail_init, error, _init_kind(error), EXIT_INIT)
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
        failed = _snapshot(api, name)
        if failed:
            return failed
    answer(api, api.next(), handler)
    while True:
        try:
            invocation = api.next()
        except RuntimeApiError as error:
            if isinstance(error.__cause__, ConnectionRefusedError):
                return 0  # an emulator that has ended: Lambda stops the whole sandbox
            raise
        answer(api, invocation, handler)


def answer(api: Api, invocation: Invocation, handler: Handler) -> None:
    """One event, from its bytes to the reply or the error that the Runtime API has accepted."""
    _set_trace(invocation.headers.get("lambda-runtime-trace-id"))
    try:
        event = _json(invocation.body)
        reply = handler(event, Context(invocation))
        if isinstance(reply, Streamed):
            _stream(api, invocation, reply)
            return
        body, content_type = _encoded(reply)
    except RuntimeApiError:
        raise
    except Exception as error:  # noqa: BLE001 (reported to Lambda)
        kind = {InvalidEvent: "Runtime.UnmarshalError", InvalidReply: "Runtime.MarshalError"}.get(
            type(error), type(error).__name__
        )
        stack, cause = ([], _xray(kind, str(error), [])) if "." in kind else _stack(error)
        _log(kind, invocation.request_id, stack)
        body = error_body(str(error), kind, invocation.request_id, stack)
        api.fail(invocation, body, kind, cause)
        return
    api.respond(invocation, body, content_type)


def _stream(api: Api, invocation: Invocation, reply: Streamed) -> None:
    try:
        api.stream(invocation, reply.chunks, reply.content_type)
    except (RuntimeApiError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 (the caller has been told in the trailer)
        _log(type(error).__name__, invocation.request_id, _stack(error)[0])


def _load(name: str) -> Handler:
    """The function `package.module.function`.

    Raises:
        ImportError, AttributeError, ValueError: there is none; and whatever its import raises.
    """
    from importlib import import_module

    module, dot, function = name.rpartition(".")
    if not dot:
        raise ValueError(f"handler {name!r} is not module.function")
    handler: Handler = getattr(import_module(module.replace("/", ".")), function)
    return handler


def _init_kind(error: Exception) -> str:
    """The type by which Lambda knows a function that cannot be loaded."""
    if isinstance(error, ImportError):
        return "Runtime.ImportModuleError"
    if isinstance(error, AttributeError):
        return "Runtime.HandlerNotFound"
    return type(error).__name__


def _snapshot(api: RuntimeApi, name: str) -> int:
    """SnapStart: the hooks around the snapshot; 0, or the exit code if one of them failed.

    A handler's module may define `before_snapshot()` and `after_restore()`.
    """
    module = sys.modules[name.rpartition(".")[0].replace("/", ".")]
    try:
        getattr(module, "before_snapshot", _nothing)()
        api.restored()
    except Exception as error:  # noqa: BLE001 (reported to Lambda)
        kind = "Runtime.BeforeSnapshotError"
        return _not_started(api.fail_init, error, kind, EXIT_BEFORE_SNAPSHOT)
    try:
        getattr(module, "after_restore", _nothing)()
    except Exception as error:  # noqa: BLE001 (reported to Lambda)
        kind = "Runtime.AfterRestoreError"
        return _not_started(api.fail_restore, error, kind, EXIT_AFTER_RESTORE)
    return 0


def _nothing() -> None:
    """The hook of a module that has none."""


def _not_started(
    report: Callable[[bytes, str], None], error: Exception, kind: str, code: int
) -> int:
    stack, _ = _stack(error)
    _log(kind, None, stack, str(error))
    report(error_body(str(error), type(error).__name__, "", stack), kind)
    return code


def _json(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"Unable to unmarshal input: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _json_header(invocation: Invocation, name: str) -> Any:
    value = invocation.headers.get(f"lambda-runtime-{name}")
    try:
        return json.loads(value) if value else None
    except (ValueError, RecursionError):
        raise InvalidEvent(f"the invocation's {name} is not JSON") from None


def _encoded(reply: Any) -> tuple[bytes, str]:
    """A reply's bytes as AWS's runtime writes them: in ASCII before Python 3.12."""
    if isinstance(reply, bytes):
        return reply, "application/unknown"
    environment = os.environ.get("AWS_EXECUTION_ENV", "")
    plain = environment[:18] == "AWS_Lambda_python3" and int(environment[19:] or 0) >= 12
    try:
        return json.dumps(reply, ensure_ascii=not plain).encode(), "application/json"
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidReply(f"Unable to marshal response: {error}") from None


def _set_trace(trace_id: str | None) -> None:
    """What tracing libraries read, and Lambda's detection of loops."""
    if trace_id is None:
        os.environ.pop("_X_AMZN_TRACE_ID", None)
    else:
        os.environ["_X_AMZN_TRACE_ID"] = trace_id


def _stack(error: Exception) -> tuple[list[str], str]:
    """The handler's own frames, as text and as X-Ray wants them."""
    import traceback

    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    cause = _xray(type(error).__name__, str(error), frames)
    return traceback.format_list(frames), cause


def _xray(kind: str, message: str, frames: list[Any]) -> str:
    stack = [{"label": f.name, "path": f.filename, "line": f.lineno} for f in frames]
    fields = {
        "working_directory": os.getcwd(),
        "exceptions": [{"message": message, "type": kind, "stack": stack}],
        "paths": sorted({f.filename for f in frames}),
    }
    return json.dumps(fields)


def _log(kind: str, request_id: str | None, stack: list[str], message: str | None = None) -> None:
    """One JSON line. Of an event's error only type and place: its text may quote a prompt."""
    line = {"level": "ERROR", "type": kind, "request_id": request_id, "stack": stack}
    if message is not None:
        line["message"] = message
    print(json.dumps(line), file=sys.stderr, flush=True)


def main() -> int:
    """Run the function that the command line names, else this project's."""
    name = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_HANDLER
    address = os.environ.get("AWS_LAMBDA_RUNTIME_API")
    if not address:
        from handler.invocations import serve  # http.server, 40 ms: not on Lambda

        return serve(_load(name), int(os.environ.get("PORT", LOCAL_PORT)))
    try:
        return run(RuntimeApi(address), name)
    except (RuntimeApiError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
