"""Shares passes over the weights between concurrent requests."""

import sys
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from gpt2core.startup.slim_typing import TYPE_CHECKING
from handler.errors import Cancelled

if TYPE_CHECKING:
    from gpt2core.engine import Engine
    from gpt2core.generation import Prompt
    from handler.generation import Event

# Seconds. A pass over the weights takes some milliseconds and mostly keeps the GIL. With Python's
# default of 5 ms, each busy thread would delay the next pass by about the time of a pass.
GIL_SWITCH_INTERVAL = 0.0005


class DecodingThread:
    """The decoding thread of a process that serves concurrent requests.

    All requests share the passes over the weights. Several decoding threads would compete for the
    CPUs, because each matrix product already uses all of them. Sets the interval at which Python
    threads hand over the GIL, for the whole process.
    """

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._scheduler = engine.scheduler()
        self._submitted: SimpleQueue[_Submission] = SimpleQueue()
        sys.setswitchinterval(GIL_SWITCH_INTERVAL)
        start_new_thread(self._run, ())

    def decode(
        self, prompts: "list[Prompt]", is_cancelled: Callable[[], bool] | None = None
    ) -> "Iterator[Event]":
        """Decode `prompts` together with those of other threads; yields their events.

        `is_cancelled` is called between passes. The prompts are cancelled when it returns true or
        when this iterator is closed.

        Raises:
            Cancelled: `is_cancelled` returned true.
            Exception: a pass failed; all callers with prompts in it get the same error.
        """
        submission = _Submission(prompts, is_cancelled or (lambda: False))
        self._submitted.put(submission)
        pending = len(prompts)
        try:
            while pending:
                event = submission.events.get()
                if isinstance(event, BaseException):
                    raise event
                pending -= event[2] is not None
                yield event
        finally:
            submission.is_abandoned = True

    def _run(self) -> None:
        """Step the scheduler while there are sequences, otherwise wait for prompts."""
        submissions: dict[int, _Submission] = {}
        scheduler, number = self._scheduler, 0
        while True:
            try:
                while not submissions or not self._submitted.empty():
                    number += 1
                    submissions[number] = self._submitted.get()
                    for prompt in submissions[number].prompts:
                        scheduler.add(prompt._replace(key=(number, prompt.key)))
                for n in [n for n, s in submissions.items() if s.is_abandoned or s.is_cancelled()]:
                    for prompt in submissions[n].prompts:
                        scheduler.cancel((n, prompt.key))
                    submissions.pop(n).events.put(Cancelled("the caller has disconnected"))
                for (n, key), tokens, end in scheduler.step():
                    submission = submissions[n]
                    submission.pending -= end is not None
                    submission.events.put((key, tokens, end))
                    if not submission.pending:
                        del submissions[n]
            except BaseException as error:  # noqa: BLE001 (raised in the waiting threads)
                for submission in submissions.values():
                    submission.events.put(error)
                submissions.clear()
                scheduler = self._engine.scheduler()


class _Submission:
    """The prompts of one waiting thread and the queue of their events."""

    def __init__(self, prompts: "list[Prompt]", is_cancelled: Callable[[], bool]) -> None:
        self.prompts = prompts
        self.pending = len(prompts)
        self.is_cancelled = is_cancelled
        self.is_abandoned = False
        """Whether the caller has stopped reading events."""
        self.events: SimpleQueue[Event | BaseException] = SimpleQueue()
