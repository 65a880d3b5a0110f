"""Requests to completions, within the limits of the settings, on `gpt2core.Scheduler`.

`complete` and `stream` process one request, alone or with others that share a `DecodingThread`.
`RequestBatch` processes many requests and returns results as they finish.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

from gpt2core.errors import GPT2Error
from handler.completions import Completion, Piece, completions_of, piece_of
from handler.dialects.request import Request, short_repr
from handler.errors import BadRequest, Cancelled, LimitExceeded, Unfinished
from handler.settings import Settings
from handler.telemetry import Timings

if TYPE_CHECKING:
    from gpt2core.engine import Engine
    from gpt2core.generation import Generation, Prompt, Token

    # As `gpt2core.scheduler.Event`: key, new tokens, end.
    _Event = tuple[Any, list[Token], Generation | GPT2Error | None]

Decode = Callable[["list[Prompt]"], "Iterator[_Event]"]


def complete(
    engine: "Engine",
    settings: Settings,
    request: Request,
    deadline: float | None,
    timings: Timings,
    decode: "Decode | None" = None,
) -> list[Completion]:
    """Continue all prompts of one request in shared passes.

    `decode` is `DecodingThread.decode` if requests share passes; None decodes in this thread.

    Raises:
        GPT2Error: the request exceeds a limit (`param` names the field), or a sequence failed.
    """
    request, events = _start(engine, settings, request, deadline, decode)
    results = {key: end for key, _, end in events if end}
    first = min(done.prefill_s for done in results.values())
    timings.add("prefill", first)
    timings.add("decode", max(d.prefill_s + d.decode_s for d in results.values()) - first)
    return completions_of(engine, request, results)


def stream(
    engine: "Engine",
    settings: Settings,
    request: Request,
    deadline: float | None,
    timings: Timings,
    decode: "Decode | None" = None,
) -> Iterator[Piece]:
    """Like `complete`, but yields the tokens of each pass before the next pass starts.

    Closing the iterator cancels the running sequences.

    Raises:
        GPT2Error: see `complete`.
    """
    request, events = _start(engine, settings, request, deadline, decode)
    timings.skip()
    phase = "prefill"
    for key, tokens, end in events:
        timings.lap(phase)
        phase = "decode"
        if tokens or end:
            yield piece_of(engine, request, key, tokens, end)


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
            request = _seeded(request, sha256(repr(chosen).encode("utf-8", "replace")).digest())
        prompts = _prompts(self._engine, self._settings, request, self._deadline)
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


class DecodingThread:
    """The decoding thread of a process that serves concurrent requests.

    All requests share the passes over the weights. Several decoding threads would compete for the
    CPUs, because each matrix product already uses all of them.
    """

    def __init__(self, engine: "Engine") -> None:
        from _thread import start_new_thread
        from queue import SimpleQueue  # 1 ms: an invoke alone does without

        self._engine = engine
        self._scheduler = engine.scheduler()
        self._submitted: SimpleQueue[_Submission] = SimpleQueue()
        start_new_thread(self._run, ())

    def decode(
        self, prompts: "list[Prompt]", is_cancelled: Callable[[], bool] | None = None
    ) -> "Iterator[_Event]":
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
            submission.is_left = True

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
                for n in [n for n, s in submissions.items() if s.is_left or s.is_cancelled()]:
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
        from queue import SimpleQueue

        self.prompts = prompts
        self.pending = len(prompts)
        self.is_cancelled = is_cancelled
        self.is_left = False
        """Whether the caller has stopped reading events."""
        self.events: SimpleQueue[_Event | BaseException] = SimpleQueue()


def _start(
    engine: "Engine",
    settings: Settings,
    request: Request,
    deadline: float | None,
    decode: "Decode | None",
) -> "tuple[Request, Iterator[tuple[Any, list[Token], Generation | None]]]":
    """The request with a seed, and its events as they are decoded."""
    if request.sampling and not request.has_seed:
        request = _seeded(request, os.urandom(8))
    prompts = _prompts(engine, settings, request, deadline)
    return request, _checked(decode(prompts) if decode else _decode(engine, prompts))


def _checked(
    events: "Iterator[_Event]",
) -> "Iterator[tuple[Any, list[Token], Generation | None]]":
    """The events; raises the error of a sequence."""
    for key, tokens, end in events:
        if isinstance(end, GPT2Error):
            raise end
        yield key, tokens, end


def _decode(engine: "Engine", prompts: "list[Prompt]") -> "Iterator[_Event]":
    scheduler = engine.scheduler()
    for prompt in prompts:
        scheduler.add(prompt)
    while scheduler:
        yield from scheduler.step()


def _prompts(
    engine: "Engine", settings: Settings, request: Request, deadline: float | None
) -> "list[Prompt]":
    """The prompts of a request, within the limits; the key of each is its index.

    Raises:
        GPT2Error: a prompt exceeds a limit; `param` names its field.
    """
    from gpt2core.generation import Prompt

    new_tokens = _within_limit(request, engine, settings)
    _check_biases(request, engine)
    found = []
    for i, prompt in enumerate(request.prompts):
        limit = settings.max_prompt_tokens
        try:
            if isinstance(prompt, str):
                ids = engine.encode_prompt(prompt, limit, request.allow_special)
            else:
                ids = engine.checked_ids(prompt, limit)
        except GPT2Error as error:
            if error.param == "prompt":
                name = request.dialect.param("prompt")
                error.param = f"{name}[{i}]" if request.is_list else name
            raise
        budget = min(new_tokens, engine.config.n_positions - len(ids))
        for choice in range(i * request.n, (i + 1) * request.n):
            sampling = request.sampling and request.sampling._replace(choice=choice)
            scored = request.has_prompt_logprobs
            found.append(
                Prompt(
                    choice, ids, budget, request.stop, deadline, sampling, request.logprobs, scored
                )
            )
    return found


def _seeded(request: Request, digest: bytes) -> Request:
    assert request.sampling
    seed = int.from_bytes(digest[:8], "little") >> 11  # an exact integer in every JSON parser
    return request._replace(sampling=request.sampling._replace(seed=seed))


def _check_biases(request: Request, engine: "Engine") -> None:
    biases = (request.sampling and request.sampling.logit_bias) or {}
    if max(biases, default=0) >= engine.config.vocab_size:
        raise BadRequest(
            f"logit_bias: token id {max(biases)} is not an integer from 0 to"
            f" {engine.config.vocab_size - 1}",
            param=request.dialect.param("logit_bias"),
        )


def _within_limit(request: Request, engine: "Engine", settings: Settings) -> int:
    """The request's `max_new_tokens`, or its default if that is within the limit.

    Raises:
        LimitExceeded: `max_new_tokens` exceeds the limit.
    """
    context = engine.config.n_positions
    limit = min(settings.max_new_tokens or context, context)
    requested = request.max_new_tokens
    if requested is None:
        return min(request.default_new_tokens, limit)
    if requested > limit:
        param = request.dialect.param("max_new_tokens")
        raise LimitExceeded(
            f"{param.rpartition('.')[2]} is {short_repr(requested)}; the limit is {limit}",
            param=param,
        )
    return requested
