"""The loop of the Lambda runtime: get an event, call the handler, post the reply.

Replaces awslambdaric and starts in 5 ms instead of 26. awslambdaric works as well:
`python -m awslambdaric handler.app.lambda_handler`.
"""

import os
import sys
from collections.abc import Callable

from handler.runtime.answer import Handler, answer, log, stack_of
from handler.runtime.api import RuntimeApi, RuntimeApiError, error_body

# Exit codes of AWS's own runtimes.
EXIT_INIT, EXIT_BEFORE_SNAPSHOT, EXIT_AFTER_RESTORE = 1, 64, 65


def run(api: RuntimeApi, name: str) -> int:
    """Process events until the Runtime API closes; returns an exit code.

    Raises:
        RuntimeApiError: the Runtime API is not reachable, or sent an unexpected response.
    """
    try:
        handler = load(name)
    except Exception as error:  # noqa: BLE001 (reported to Lambda)
        return _not_started(api.fail_init, error, _init_kind(error), EXIT_INIT)
    count = os.environ.get("AWS_LAMBDA_MAX_CONCURRENCY", "")
    if count.isdigit() and int(count) > 1:
        from handler.runtime import concurrent  # threading, only needed here

        return concurrent.run(api.address, handler, int(count))
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
                return 0  # an emulator has ended; Lambda would stop the sandbox
            raise
        answer(api, invocation, handler)


def load(name: str) -> Handler:
    """Import the function `package.module.function`.

    Raises:
        ImportError, AttributeError, ValueError: it does not exist.
        Exception: its module raised it.
    """
    from importlib import import_module

    module, dot, function = name.rpartition(".")
    if not dot:
        raise ValueError(f"handler {name!r} is not module.function")
    handler: Handler = getattr(import_module(module.replace("/", ".")), function)
    return handler


def _init_kind(error: Exception) -> str:
    """Lambda's error type for a function that cannot be loaded."""
    if isinstance(error, ImportError):
        return "Runtime.ImportModuleError"
    if isinstance(error, AttributeError):
        return "Runtime.HandlerNotFound"
    return type(error).__name__


def _snapshot(api: RuntimeApi, name: str) -> int:
    """Run the SnapStart hooks; returns 0, or the exit code if a hook failed.

    A handler's module may define `before_snapshot()` and `after_restore()`.
    """
    module = sys.modules[name.rpartition(".")[0].replace("/", ".")]
    try:
        getattr(module, "before_snapshot", _nothing)()
        api.wait_for_restore()
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
    """The default hook."""


def _not_started(
    report: Callable[[bytes, str], None], error: Exception, kind: str, code: int
) -> int:
    stack, _ = stack_of(error)
    log(kind, None, stack, str(error))
    report(error_body(str(error), type(error).__name__, "", stack), kind)
    return code


def main(name: str, address: str) -> int:
    """Run the function `name` for the Runtime API at `address`; returns the exit code."""
    try:
        return run(RuntimeApi(address), name)
    except (RuntimeApiError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
