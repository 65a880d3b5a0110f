"""Concurrent invocations in one process: Lambda Managed Instances.

`AWS_LAMBDA_MAX_CONCURRENCY` threads poll `/next`, each with its own connection. AWS's Python client
forks a process for each; here the threads share one engine and its passes over the weights. Source:
AWS Lambda Developer Guide, "Lambda Managed Instances: custom runtimes".
"""

import sys
import threading
from collections.abc import Callable
from time import sleep

from handler.runtime.answer import Handler, answer, log
from handler.runtime.api import RuntimeApi, RuntimeApiError

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0


def run(address: str, handler: Handler, count: int, pause: Callable[[float], None] = sleep) -> int:
    """Process up to `count` events concurrently, until the process ends.

    If the handler's module defines `enable_concurrency()`, it is called first.
    """
    enable = getattr(sys.modules[handler.__module__], "enable_concurrency", None)
    if enable:
        enable()
    for _ in range(count - 1):
        threading.Thread(target=_poll, args=(address, handler, pause), daemon=True).start()
    _poll(address, handler, pause)
    return 0


def _poll(address: str, handler: Handler, pause: Callable[[float], None]) -> None:
    """Process events in a loop. Errors are only logged: other threads continue."""
    api = RuntimeApi(address)
    wait_s = FIRST_PAUSE_S
    while True:
        try:
            invocation = api.next()
        except (RuntimeApiError, OSError) as error:
            if wait_s == FIRST_PAUSE_S:  # log only the first of consecutive failures
                log("Runtime.NextFailed", None, [], str(error))
            pause(wait_s)
            wait_s = min(2 * wait_s, LONGEST_PAUSE_S)
            continue
        wait_s = FIRST_PAUSE_S
        try:
            # The trace id is an environment variable, which the threads would share.
            answer(api, invocation, handler, sets_trace=False)
        except (RuntimeApiError, OSError) as error:
            log("Runtime.ReplyFailed", invocation.request_id, [], str(error))
