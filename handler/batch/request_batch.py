"""Decodes many requests together, for queues, files and Distributed Map batches."""

from collections.abc import Iterable, Iterator
from time import monotonic

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.completions import Completion, completions_of
from handler.dialects.request import Request
from handler.errors import Unfinished
from handler.generation import prompts_of, with_seed
from handler.settings import Settings

if TYPE_CHECKING:
    from gpt2core.engine import Engine
    from gpt2core.generation import Generation


class RequestBatch:
    """Requests that are decoded together, in one thread. `deadline`: `time.monotonic()` seconds.

    `add` requests while there is `room`, then `step`, until none is `pending`. Results are always
    complete: a request that does not finish before the deadline gives `Unfinished`.
    """

    def __init__(self, engine: "Engine", settings: Settings, deadline: float | None) -> None:
        self._engine = engine
        self._settings = settings
        self._deadline = deadline
        self._scheduler = engine.scheduler()
        self._requests: dict[Any, Request] = {}
        self._results: dict[Any, dict[int, Generation]] = {}

    @property
    def room(self) -> int:
        """How many more prompts could start in the next step."""
        return self._scheduler.room

    @property
    def pending(self) -> int:
        """Number of requests without a result."""
        return len(self._requests)

    def add(self, key: Any, request: Request) -> bool:
        """Add a request; returns False if it could not finish before the deadline.

        Raises:
            GPT2Error: the request exceeds a limit.
        """
        if request.sampling and not request.has_seed:
            from hashlib import sha256

            # Derived from the request, so that a second delivery gets the same bytes.
            chosen = request._replace(dialect=None, has_id=False, id=None)  # type: ignore[arg-type]
            request = with_seed(request, sha256(repr(chosen).encode("utf-8", "replace")).digest())
        prompts = prompts_of(self._engine, self._settings, request, self._deadline)
        if self._deadline is not None:
            left = self._deadline - monotonic()
            longest = max(prompt.max_new_tokens for prompt in prompts)
            if left <= longest * self._scheduler.pass_s:
                return False
        self._requests[key], self._results[key] = request, {}
        for prompt in prompts:
            self._scheduler.add(prompt._replace(key=(key, prompt.key)))
        return True

    def step(self) -> list[tuple[Any, list[Completion] | GPT2Error]]:
        """Run one pass; returns the finished requests with their results or errors."""
        finished: list[tuple[Any, list[Completion] | GPT2Error]] = []
        for (key, i), _, end in self._scheduler.step():
            if end is None or key not in self._requests:
                continue
            if isinstance(end, GPT2Error):
                finished.append((key, end))
                self._drop(key)
            elif end.finish_reason == "deadline":
                finished.append(
                    (key, Unfinished("the deadline passed before the request finished"))
                )
                self._drop(key)
            else:
                results = self._results[key]
                results[i] = end
                request = self._requests[key]
                if len(results) == len(request.prompts) * request.n:
                    finished.append((key, completions_of(self._engine, request, results)))
                    del self._requests[key]
                    del self._results[key]
        return finished

    def _drop(self, key: Any) -> None:
        """Remove a failed request and cancel its other prompts."""
        del self._results[key]
        request = self._requests.pop(key)
        for i in range(len(request.prompts) * request.n):
            self._scheduler.cancel((key, i))


def complete_all(
    engine: "Engine",
    settings: Settings,
    requests: Iterable[tuple[Any, Request]],
    deadline: float | None,
) -> Iterator[tuple[Any, list[Completion] | GPT2Error]]:
    """Decode (key, request) pairs together; yield (key, completions or error) as they finish.

    Every request gets one result; `Unfinished` if the deadline passed.
    """
    batch = RequestBatch(engine, settings, deadline)
    waiting = iter(requests)
    more = True
    while more or batch.pending:
        while more and batch.room:
            try:
                key, request = next(waiting)
            except StopIteration:
                more = False
                break
            try:
                if not batch.add(key, request):
                    yield key, Unfinished("the deadline passed before the request started")
            except GPT2Error as error:
                yield key, error
        yield from batch.step()
