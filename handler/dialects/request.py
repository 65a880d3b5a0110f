"""Shared by all dialects: `Request`, the interface `Dialect`, and the validation of fields. Pure.

Unknown fields are errors that name the field. A field that is null counts as missing.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from handler.errors import BadRequest, LimitExceeded

if TYPE_CHECKING:
    from gpt2core.errors import GPT2Error
    from gpt2core.sampling import Sampling
    from handler.completions import Completion, Piece
    from handler.jobs import Job
    from handler.telemetry import Report

DEFAULT_NEW_TOKENS = 20
MAX_PROMPTS = 128
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 256  # matching takes time proportional to number times length, for each token
EXAMPLE = '{"prompt": "Once upon a time", "max_new_tokens": 20}'

MAX_BIASES = 1024
# Sampling fields. A dialect with other names passes them to `sampling_of`.
SAMPLING = (
    "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size",
    "presence_penalty", "frequency_penalty", "logit_bias", "seed",
)  # fmt: skip

_FLAGS = ("return_full_text", "stream", "details", "do_sample", "allow_special", "echo")
_NUMBERS = ("max_new_tokens", "max_tokens", "n", "best_of", "logprobs", *SAMPLING)
_LISTS = ("stop",)


class EventStream:
    """A streamed reply; iterates over strings. `close` stops the generation of its events.

    This class sends server-sent events (HTML Standard, "Server-sent events"). A subclass can send
    another format.
    """

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, events: Iterable[Any], close: Callable[[], None] | None = None) -> None:
        self._events = iter(events)
        self.close = close or (lambda: None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        event = next(self._events)
        data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
        return self.frame(data)

    def frame(self, data: str) -> str:
        """One event as it is sent. `data` is its JSON, or the event itself if it is a string."""
        return f"data: {data}\n\n"


class Dialect(Protocol):
    """A format of requests and replies."""

    routes: Mapping[str, tuple[str, ...]]
    """Paths with their methods; `/a/` stands for all paths below it."""
    is_supported: bool = True
    """False if every request is an error; the list of routes in a 404 reply leaves it out."""
    stream_class: type[EventStream] = EventStream
    """How the events of a stream are sent. The default is server-sent events."""

    def recognizes(self, fields: Mapping[str, Any]) -> bool:
        """Whether these are fields of a request in this dialect."""

    def from_form(self, form: Mapping[str, list[str]]) -> dict[str, Any]:
        """Convert the fields of a form to those of a JSON request."""

    def read(self, path: str) -> "Job":
        """The job of a GET request, for a dialect that has `GET` in its `routes`."""
        raise AssertionError(f"{path} has no GET")

    def parse(self, fields: Mapping[str, Any]) -> "Request":
        """Validate the fields of one request.

        Raises:
            BadRequest: a field is missing, unknown or has the wrong type; `param` names it.
            LimitExceeded: there are too many prompts or stop strings.
        """

    def param(self, name: str) -> str:
        """The format's name of a field of `Request`, with its path, for errors of generation.

        It is called for `prompt`, `max_new_tokens` and `logit_bias`.
        """

    def render(
        self, request: "Request", completions: "Sequence[Completion]", report: "Report"
    ) -> Any:
        """The reply to a request, as JSON values."""

    def events(
        self, request: "Request", pieces: "Iterator[Piece]", report: "Callable[[], Report]"
    ) -> "Iterator[Any]":
        """The events of a streamed reply, which `stream_class` sends.

        A string becomes the data of an event as it is (OpenAI's `[DONE]`); other JSON values are
        serialized. There is no event before the first piece. `report` returns the report up to the
        call.
        """

    def error_event(self, error: "GPT2Error") -> Any:
        """The last event of a stream that fails after its first event."""

    def texts(self, reply: Any) -> list[str]:
        """The generated texts of a reply, for `python -m handler invoke --text`."""

    def render_error(self, error: "GPT2Error") -> tuple[int, Any]:
        """The HTTP status and the reply for an error."""


class Request(NamedTuple):
    """Prompts to continue with the same parameters."""

    dialect: Dialect
    prompts: tuple[str | tuple[int, ...], ...]
    """Strings, or token ids if the dialect supports them."""
    is_list: bool = False
    """Whether the prompts were sent as a list; the reply then has a list, too."""
    max_new_tokens: int | None = None
    """None: `default_new_tokens`, or the limit if that is lower."""
    stop: tuple[str, ...] = ()
    return_full_text: bool = False
    details: bool = False
    """Whether the reply includes the finish reason and the number of tokens (Hugging Face)."""
    has_id: bool = False
    id: Any = None
    allow_special: bool = True
    """Whether special tokens in a prompt are recognized instead of treated as plain text."""
    default_new_tokens: int = DEFAULT_NEW_TOKENS
    sampling: "Sampling | None" = None
    """How tokens are chosen; None for greedy decoding."""
    has_seed: bool = False
    """Whether the caller set the seed; otherwise `handler.generation` chooses one."""
    n: int = 1
    """Number of continuations of each prompt."""
    logprobs: int | None = None
    """Number of most likely tokens to report for each token; None: no logprobs."""
    has_prompt_logprobs: bool = False
    """Whether to report logprobs of the prompt's tokens, too."""
    model: str | None = None
    """The model in the request, if any. A model other than the served one is an error."""
    stream: bool = False
    """Whether to reply with an event stream."""
    include_usage: bool = False
    """Whether the last event of a stream has the token counts (OpenAI)."""


def short_repr(value: Any) -> str:
    """A value for an error message: truncated, ASCII, one line; for a container only its type."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (dict, list)):
        return f"an {'object' if isinstance(value, dict) else 'array'}"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of more than 128 bits"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def param_of(name: str) -> str:
    """A field name from a request as an error's `param`, escaped and truncated."""
    return ascii(name)[1:-1][:80]


def parse_json(text: str, what: str, param: str | None = None) -> Any:
    """Parse JSON; `what` is its name in error messages.

    Raises:
        BadRequest: it is not valid JSON (NaN and Infinity are not), or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except RecursionError:
        raise BadRequest(f"{what} is nested too deeply", param=param) from None
    except ValueError as error:
        where = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadRequest(f"{what} is not JSON{where}", param=param) from None


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def typed_form(form: Mapping[str, list[str]]) -> dict[str, Any]:
    """Convert the values of a form to their types in JSON.

    Raises:
        BadRequest: a field other than `stop` occurs more than once.
    """
    fields: dict[str, Any] = {}
    for name, values in form.items():
        if name in _LISTS:
            fields[name] = values
            continue
        if len(values) > 1:
            raise BadRequest(f"{short_repr(name)} occurs {len(values)} times", param=param_of(name))
        (value,) = values
        if name in _NUMBERS and value.isascii() and 0 < len(value) < 21:
            fields[name] = _number(value)
        elif name in _FLAGS and value in ("true", "false"):
            fields[name] = value == "true"
        else:
            fields[name] = value
    return fields


def _number(text: str) -> int | float | str:
    """The JSON number in a text, or the text itself if it is not a number."""
    try:
        value = json.loads(text, parse_constant=_reject_constant)
    except ValueError:
        return text
    return value if type(value) in (int, float) else text


def sampling_of(
    fields: Mapping[str, Any],
    prefix: str = "",
    names: Mapping[str, str] = {},
) -> "Sampling | None":
    """The sampling parameters of a request; None if it has none.

    `prefix` is the path of `fields` in the request (`parameters.`), for errors. `names` maps those
    in `SAMPLING` to the names of the format, where they differ.

    Raises:
        BadRequest: a value has the wrong type or is out of range.
        LimitExceeded: there are too many biases.
    """
    sent = {name: fields.get(names.get(name, name)) for name in SAMPLING}
    given = {name: value for name, value in sent.items() if value is not None}
    if not given:
        return None
    from gpt2core.errors import InvalidArgument
    from gpt2core.sampling import checked_sampling

    if isinstance(given.get("logit_bias"), dict):
        given["logit_bias"] = _biases(
            given["logit_bias"], prefix + names.get("logit_bias", "logit_bias")
        )
    try:
        return checked_sampling(given)
    except InvalidArgument as error:
        name = error.param or ""  # the message starts with it
        param = prefix + names.get(name, name)
        raise BadRequest(param + error.message.removeprefix(name), param=param) from None


def _biases(biases: Mapping[str, Any], param: str) -> dict[int, Any]:
    """Biases by token id; in JSON the ids are strings."""
    if len(biases) > MAX_BIASES:
        raise LimitExceeded(
            f"{param} has {len(biases)} entries; the limit is {MAX_BIASES}", param=param
        )
    for token in biases:
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise BadRequest(f"{param}: {short_repr(token)} is not a token id", param=param)
    return {int(token): value for token, value in biases.items()}


def check_known(fields: Mapping[str, Any], known: Sequence[str], prefix: str = "") -> None:
    """Raise `BadRequest` for the first field that is not in `known`.

    `prefix` is the path of `fields` in the request, for errors: `parameters.`, for example.
    """
    of = f" of {prefix[:-1]}" if prefix else ""
    for name in fields:
        if name not in known:
            raise BadRequest(
                f"unknown field {short_repr(f'{prefix}{name}')}; known fields{of}:"
                f" {', '.join(known)}",
                param=prefix + param_of(str(name)),
            )


def streams_one(
    fields: Mapping[str, Any], is_list: bool, param: str, default: bool = False
) -> bool:
    """The field `stream`. It requires a single prompt, because events have no prompt index.

    `param` is the name of the prompt field, for errors.

    Raises:
        BadRequest: it is not a boolean, or the prompts were sent as a list.
    """
    stream = flag(fields.get("stream"), "stream", default)
    if stream and is_list:
        raise BadRequest(
            f"stream requires a single prompt: send {param} as a string, or set stream to false",
            param="stream",
        )
    return stream


def prompts_of(value: Any, param: str) -> tuple[tuple[str, ...], bool]:
    """The prompts, and whether they were sent as a list."""
    prompts = value if isinstance(value, list) else [value]
    if not prompts:
        raise BadRequest(f"{param} is an empty list: send at least one prompt", param=param)
    if len(prompts) > MAX_PROMPTS:
        raise LimitExceeded(
            f"{param} has {len(prompts)} entries; the limit is {MAX_PROMPTS}",
            param=param,
        )
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            where = f"{param}[{i}]" if isinstance(value, list) else param
            raise BadRequest(f"{where} is {short_repr(prompt)}, not a string", param=where)
    return tuple(prompts), isinstance(value, list)


def count(value: Any, param: str) -> int | None:
    """An integer of at least 0, or None."""
    if value is not None and (type(value) is not int or value < 0):
        raise BadRequest(
            f"{param} is {short_repr(value)}, not an integer of at least 0", param=param
        )
    return value


def stops_of(value: Any, param: str) -> tuple[str, ...]:
    """One stop string, a list of them, or none."""
    stops = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(s, str) and s for s in stops):
        raise BadRequest(f"{param} must be a non-empty string or a list of them", param=param)
    if any(len(s) > MAX_STOP_CHARACTERS for s in stops):
        raise LimitExceeded(
            f"{param} has a string over the limit of {MAX_STOP_CHARACTERS} characters", param=param
        )
    if len(stops) > MAX_STOPS:
        raise LimitExceeded(
            f"{param} has {len(stops)} entries; the limit is {MAX_STOPS}", param=param
        )
    return tuple(stops)


def flag(value: Any, param: str, default: bool) -> bool:
    """A boolean; None means the default."""
    if value is None:
        return default
    if type(value) is not bool:
        raise BadRequest(f"{param} is {short_repr(value)}, not true or false", param=param)
    return value


def check_echo(value: Any) -> None:
    """Check that an id, which is returned unchanged, can be written as JSON in UTF-8.

    Raises:
        BadRequest: it cannot.
    """
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise BadRequest("id cannot be written as JSON in UTF-8", param="id") from None
