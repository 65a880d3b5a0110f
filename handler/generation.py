"""Processes one request within the limits of the settings, on `gpt2core.Scheduler`.

`handler.decoding_thread` shares passes between concurrent requests; `handler.batch.request_batch`
processes many requests.
"""

import os
from collections.abc import Callable, Iterator

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.completions import Completion, Piece, completions_of, piece_of
from handler.dialects.request import Request, short_repr
from handler.errors import BadRequest, LimitExceeded
from handler.settings import Settings
from handler.telemetry import Timings

if TYPE_CHECKING:
    from gpt2core.engine import Engine
    from gpt2core.generation import Generation, Prompt, Token

    # As `gpt2core.scheduler.Event`: key, new tokens, end.
    Event = tuple[Any, list[Token], Generation | GPT2Error | None]

Decode = Callable[["list[Prompt]"], "Iterator[Event]"]


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
    _set_phases(timings, list(results.values()))
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

    Closing the iterator cancels the running sequences. The caller excludes the time that it holds
    a piece with `Timings.skip`.

    Raises:
        GPT2Error: see `complete`.
    """
    request, events = _start(engine, settings, request, deadline, decode)
    timings.skip()
    phase = "prefill"
    ends: list[Generation] = []
    for key, tokens, end in events:
        timings.lap(phase)
        phase = "decode"
        if end:
            ends.append(end)
        # The decoding thread runs on while the caller holds a piece, so laps do not measure it.
        if decode and len(ends) == len(request.prompts) * request.n:
            _set_phases(timings, ends)
        if tokens or end:
            yield piece_of(engine, request, key, tokens, end)


def _set_phases(timings: Timings, ends: "list[Generation]") -> None:
    """Set `prefill` and `decode` from the times of all sequences of a request."""
    first = min(end.prefill_s for end in ends)
    timings.set("prefill", first)
    timings.set("decode", max(end.prefill_s + end.decode_s for end in ends) - first)


def _start(
    engine: "Engine",
    settings: Settings,
    request: Request,
    deadline: float | None,
    decode: "Decode | None",
) -> "tuple[Request, Iterator[tuple[Any, list[Token], Generation | None]]]":
    """The request with a seed, and its events as they are decoded."""
    if request.sampling and not request.has_seed:
        request = with_seed(request, os.urandom(8))
    prompts = prompts_of(engine, settings, request, deadline)
    return request, _checked(decode(prompts) if decode else _decode(engine, prompts))


def _checked(
    events: "Iterator[Event]",
) -> "Iterator[tuple[Any, list[Token], Generation | None]]":
    """The events; raises the error of a sequence."""
    for key, tokens, end in events:
        if isinstance(end, GPT2Error):
            raise end
        yield key, tokens, end


def _decode(engine: "Engine", prompts: "list[Prompt]") -> "Iterator[Event]":
    scheduler = engine.scheduler()
    for prompt in prompts:
        scheduler.add(prompt)
    while scheduler:
        yield from scheduler.step()


def prompts_of(
    engine: "Engine", settings: Settings, request: Request, deadline: float | None
) -> "list[Prompt]":
    """The prompts of a request, within the limits; the key of each is its index.

    Raises:
        GPT2Error: a prompt exceeds a limit; `param` names its field.
    """
    from gpt2core.generation import Prompt
    from gpt2core.sequence import needs_sampler

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
    if any(needs_sampler(prompt, engine.config) for prompt in found):
        # Imports NumPy here, not in the decoding thread: that takes time, and an error ends only
        # this request.
        import gpt2core.sampler  # noqa: F401
    return found


def with_seed(request: Request, digest: bytes) -> Request:
    """The request with a seed made of the first 8 bytes of `digest`."""
    assert request.sampling
    seed = int.from_bytes(digest[:8], "little") >> 11  # an exact integer in every JSON parser
    return request._replace(sampling=request.sampling._replace(seed=seed))


def _check_biases(request: Request, engine: "Engine") -> None:
    biases = (request.sampling and request.sampling.logit_bias) or {}
    if max(biases, default=0) >= engine.config.vocab_size:
        param = request.dialect.param("logit_bias")
        raise BadRequest(
            f"{param}: token id {max(biases)} is not an integer from 0 to"
            f" {engine.config.vocab_size - 1}",
            param=param,
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
        origin = "the model's context" if limit == context else "GPT2_MAX_NEW_TOKENS"
        raise LimitExceeded(
            f"{param} is {short_repr(requested)}; the limit is {limit} ({origin})", param=param
        )
    return requested
