"""Requests -> completions, within the limits of the settings: one request, or many together."""

from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt2core.errors import GPT2Error
from handler.dialects import DEFAULT_NEW_TOKENS, Request, shown
from handler.errors import LimitExceeded, Unfinished
from handler.settings import Settings
from handler.timings import Timings

if TYPE_CHECKING:
    from gpt2core.engine import Engine
    from gpt2core.generate import Generation


class Completion(NamedTuple):
    """One prompt's result."""

    prompt: str
    text: str
    ids: list[int]
    prompt_tokens: int
    finish_reason: str


class Counts:
    """What a batch came to."""

    def __init__(self) -> None:
        self.requests = self.errors = self.prompt_tokens = self.completion_tokens = 0

    def add(self, done: list[Completion] | GPT2Error) -> None:
        """Count one request."""
        self.requests += 1
        if isinstance(done, GPT2Error):
            self.errors += 1
        else:
            self.prompt_tokens += sum(c.prompt_tokens for c in done)
            self.completion_tokens += sum(len(c.ids) for c in done)


def complete(
    engine: "Engine",
    settings: Settings,
    request: Request,
    deadline: float | None,
    timings: Timings,
) -> list[Completion]:
    """Every prompt of one request, continued; those of a list together.

    Raises:
        GPT2Error: the request is over a limit; `param` names the field.
    """
    new_tokens = _within_limit(request, engine, settings)
    prompts = _prompt_ids(request, engine, settings)
    if len(prompts) == 1:
        done = engine.generate(prompts[0], new_tokens, request.stop, deadline)
        timings.add("prefill", done.prefill_s)
        timings.add("decode", done.decode_s)
        return [_completion(request.prompts[0], done)]
    from gpt2core.batch import Prompt

    began = monotonic()
    rows = [Prompt(i, ids, new_tokens, request.stop) for i, ids in enumerate(prompts)]
    results = dict(engine.generate_rows(rows, deadline))
    first = min(done.prefill_s for done in results.values())
    timings.add("prefill", first)
    timings.add("decode", monotonic() - began - first)
    return [_completion(prompt, results[i]) for i, prompt in enumerate(request.prompts)]


def complete_all(
    engine: "Engine",
    settings: Settings,
    requests: Iterable[tuple[Any, Request] | None],
    deadline: float | None,
    refuse: Callable[[Any, GPT2Error], None],
) -> Iterator[tuple[Any, list[Completion] | Unfinished]]:
    """(key, request) as they come -> (key, completions) as they are finished, decoded together.

    A request that is over a limit is refused at once. None among the requests means that there is
    nothing just now. A request for which time ran out gives `Unfinished`, or nothing if it had not
    begun: no result is ever a part of one.
    """
    from gpt2core.batch import Prompt

    parts: dict[Any, list[Completion | None]] = {}
    asked: dict[Any, Request] = {}

    def prompts() -> Iterator[Prompt | None]:
        for item in requests:
            if item is None:
                yield None
                continue
            key, request = item
            try:
                new_tokens = _within_limit(request, engine, settings)
                every = _prompt_ids(request, engine, settings)
            except GPT2Error as error:
                refuse(key, error)
                continue
            asked[key], parts[key] = request, [None] * len(every)
            for i, ids in enumerate(every):
                yield Prompt((key, i), ids, new_tokens, request.stop)

    for (key, i), done in engine.generate_rows(prompts(), deadline, partial=False):
        if key not in asked:
            continue  # another of its prompts is unfinished
        if done.finish_reason == "deadline":
            del asked[key], parts[key]
            yield key, Unfinished("the time ran out before this request was finished")
            continue
        parts[key][i] = _completion(asked[key].prompts[i], done)
        if all(parts[key]):
            del asked[key]
            yield key, [part for part in parts.pop(key) if part]


def _completion(prompt: str, done: "Generation") -> Completion:
    return Completion(prompt, done.text, done.ids, done.prompt_tokens, done.finish_reason)


def _prompt_ids(request: Request, engine: "Engine", settings: Settings) -> list[list[int]]:
    """Every prompt's ids within the limits; an error names the prompt by its field."""
    found = []
    for i, prompt in enumerate(request.prompts):
        try:
            found.append(engine.encode_prompt(prompt, settings.max_prompt_tokens))
        except GPT2Error as error:
            if error.param == "prompt":
                name = request.prompt_param
                error.param = f"{name}[{i}]" if request.is_list else name
            raise
    return found


def _within_limit(request: Request, engine: "Engine", settings: Settings) -> int:
    """The request's `max_new_tokens`, or the default within the limit."""
    context = engine.config.n_positions
    limit = min(settings.max_new_tokens or context, context)
    asked = request.max_new_tokens
    if asked is None:
        return min(DEFAULT_NEW_TOKENS, limit)
    if asked > limit:
        raise LimitExceeded(
            f"max_new_tokens is {shown(asked)} and the limit is {limit}: ask for less",
            param="max_new_tokens" if request.dialect == "native" else "parameters.max_new_tokens",
        )
    return asked
