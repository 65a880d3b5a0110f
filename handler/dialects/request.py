"""Shared by all dialects: `Request`, the base class `Dialect`, and the validation of fields. Pure.

Unknown fields are errors that name the field. A field that is null counts as missing.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from gpt2core.startup.slim_typing import TYPE_CHECKING, Any, NamedTuple
from handler.errors import BadRequest, LimitExceeded, status_of

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
EXAMPLE = '{"prompt": "Once upon a time"}'  # valid on every route

MAX_BIASES = 1024
# Sampling fields. A dialect with other names passes them to `sampling_of`.
SAMPLING = (
    "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size",
    "presence_penalty", "frequency_penalty", "logit_bias", "seed",
)  # fmt: skip


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


class Dialect:
    """An API format. The defaults are for fields that are named like those of `Request`."""

    routes: Mapping[str, tuple[str, ...]]
    """Paths with their methods; `/a/` stands for all paths below it."""
    is_supported: bool = True
    """False if every request is an error; the list of routes in a 404 reply leaves it out."""
    stream_class: type[EventStream] = EventStream
    """How the events of a stream are sent. The default is server-sent events."""
    text_fields: tuple[str, ...] = ("prompt",)
    """Fields of a form that remain strings; other values become numbers and booleans."""
    list_fields: tuple[str, ...] = ("stop",)
    """Fields of a form that may occur more than once; they become lists of strings."""

    def recognizes(self, fields: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Whether these fields identify the dialect. By default, only the path does."""
        return False

    def from_form(self, form: Mapping[str, list[str]]) -> dict[str, Any]:
        """Convert the fields of a form to those of a JSON request.

        Raises:
            BadRequest: a field that is not in `list_fields` occurs more than once.
        """
        fields: dict[str, Any] = {}
        for name, values in form.items():
            if name in self.list_fields:
                fields[name] = values
                continue
            if len(values) > 1:
                raise BadRequest(
                    f"{short_repr(name)} occurs {len(values)} times: send it once",
                    param=param_of(name),
                )
            fields[name] = values[0] if name in self.text_fields else _form_value(values[0])
        return fields

    def read(self, path: str) -> "Job":
        """The job of a GET request, for a dialect that has `GET` in its `routes`."""
        raise AssertionError(f"{path} has no GET")

    def parse(self, fields: Mapping[str, Any]) -> "Request":
        """Validate the fields of one request.

        Raises:
            BadRequest: a field is missing, unknown or has the wrong type; `param` names it.
            LimitExceeded: there are too many prompts or stop strings.
        """
        raise NotImplementedError

    def param(self, name: str) -> str:
        """The format's name of a field of `Request`, with its path, for errors of generation.

        It is called for `prompt`, `max_new_tokens` and `logit_bias`.
        """
        return name

    def render(
        self, request: "Request", completions: "Sequence[Completion]", report: "Report"
    ) -> Any:
        """The reply to a request, as JSON values."""
        raise NotImplementedError

    def events(
        self, request: "Request", pieces: "Iterator[Piece]", report: "Callable[[], Report]"
    ) -> "Iterator[Any]":
        """The events of a streamed reply, which `stream_class` sends.

        A string becomes the data of an event as it is (OpenAI's `[DONE]`); other JSON values are
        serialized. Yield nothing before the first piece: an error until then is a reply with its
        own status. `report` returns the report up to the call.
        """
        raise NotImplementedError

    def error_event(self, error: "GPT2Error") -> Any:
        """The last event of a stream that fails after its first event."""
        raise NotImplementedError

    def render_error(self, error: "GPT2Error") -> tuple[int, Any]:
        """The HTTP status and the reply for an error."""
        return status_of(error), self.error_event(error)

    def texts(self, reply: Any) -> list[str]:
        """The generated texts of a reply, for `python -m handler invoke --text`."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """The part of `GET /openapi.json` for this dialect; all keys are optional.

        `summary` says what it does. `request`, `reply` and `error` are JSON schemas
        (`handler.dialects.schemas`). `reads` maps each `GET` route to its summary and the schema
        of its reply.
        """
        return {}


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
    """Whether the caller set the seed (`sampling_of`); otherwise one is chosen."""
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
        where = f": {error}"
        if isinstance(error, json.JSONDecodeError) and text[error.pos : error.pos + 1] == "'":
            where += ": use double quotes, not single ones"
        raise BadRequest(f"{what} is not JSON{where}", param=param) from None


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed: send a number or null")


def _form_value(text: str) -> bool | int | float | str:
    """The JSON number or boolean in a text, or the text itself."""
    if not text.isascii() or len(text) > 20:
        return text
    try:
        value = json.loads(text, parse_constant=_reject_constant)
    except ValueError:
        return text
    return value if type(value) in (bool, int, float) else text


def sampling_of(
    fields: Mapping[str, Any],
    prefix: str = "",
    names: Mapping[str, str] = {},
) -> "tuple[Sampling | None, bool]":
    """The sampling parameters of a request, None if it has none; and whether it has a seed.

    `prefix` is the path of `fields` in the request (`parameters.`), for errors. `names` maps those
    in `SAMPLING` to the names of the format, where they differ.

    Raises:
        BadRequest: a value has the wrong type or is out of range.
        LimitExceeded: there are too many biases.
    """
    sent = {name: fields.get(names.get(name, name)) for name in SAMPLING}
    given = {name: value for name, value in sent.items() if value is not None}
    if not given:
        return None, False
    from gpt2core.errors import InvalidArgument
    from gpt2core.sampling import checked_sampling

    if isinstance(given.get("logit_bias"), dict):
        given["logit_bias"] = _biases(
            given["logit_bias"], prefix + names.get("logit_bias", "logit_bias")
        )
    try:
        return checked_sampling(given), "seed" in given
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
            raise BadRequest(
                f"{param}: {short_repr(token)} is not a token id in quotes", param=param
            )
    return {int(token): value for token, value in biases.items()}


def check_known(fields: Mapping[str, Any], known: Sequence[str], prefix: str = "") -> None:
    """Check that all fields are in `known`.

    `prefix` is the path of `fields` in the request, for errors: `parameters.`, for example.

    Raises:
        BadRequest: a field is unknown.
    """
    of = f" of {prefix[:-1]}" if prefix else ""
    for name in fields:
        if name not in known:
            raise BadRequest(
                f"unknown field {short_repr(f'{prefix}{name}')}; known fields{of}:"
                f" {', '.join(known)}",
                param=prefix + param_of(str(name)),
            )


def stream_flag(
    fields: Mapping[str, Any], is_list: bool, param: str, default: bool = False
) -> bool:
    """The field `stream`. It requires a single prompt, because events have no prompt index.

    `param` is the name of the prompt field, for errors.

    Raises:
        BadRequest: it is not a boolean, or the prompts were sent as a list.
    """
    stream = checked_flag(fields.get("stream"), "stream", default)
    if stream and is_list:
        raise BadRequest(
            f"stream requires a single prompt: send {param} as a string, or set stream to false",
            param="stream",
        )
    return stream


def prompts_of(value: Any, param: str) -> tuple[tuple[str, ...], bool]:
    """The prompts, and whether they were sent as a list.

    Raises:
        BadRequest: it is neither a string nor a list of strings, or the list is empty.
        LimitExceeded: there are too many prompts.
    """
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
            where, accepted = (
                (f"{param}[{i}]", "a string")
                if isinstance(value, list)
                else (param, "a string or a list of strings")
            )
            raise BadRequest(f"{where} is {short_repr(prompt)}, not {accepted}", param=where)
    return tuple(prompts), isinstance(value, list)


def checked_count(value: Any, param: str) -> int | None:
    """An integer of at least 0, or None.

    Raises:
        BadRequest: it is neither.
    """
    if value is not None and (type(value) is not int or value < 0):
        raise BadRequest(
            f"{param} is {short_repr(value)}, not an integer of at least 0", param=param
        )
    return value


def stops_of(value: Any, param: str) -> tuple[str, ...]:
    """One stop string, a list of them, or none.

    Raises:
        BadRequest: a stop string is empty or not a string.
        LimitExceeded: there are too many stop strings, or one is too long.
    """
    if value is None:
        return ()
    stops = value if isinstance(value, list) else [value]
    if len(stops) > MAX_STOPS:
        raise LimitExceeded(
            f"{param} has {len(stops)} entries; the limit is {MAX_STOPS}", param=param
        )
    for i, stop in enumerate(stops):
        where, accepted = (
            (f"{param}[{i}]", "a non-empty string")
            if isinstance(value, list)
            else (param, "a non-empty string or a list of them")
        )
        if not isinstance(stop, str) or not stop:
            raise BadRequest(f"{where} is {short_repr(stop)}, not {accepted}", param=param)
        if len(stop) > MAX_STOP_CHARACTERS:
            raise LimitExceeded(
                f"{where} has {len(stop)} characters; the limit is {MAX_STOP_CHARACTERS}",
                param=param,
            )
    return tuple(stops)


def checked_flag(value: Any, param: str, default: bool) -> bool:
    """A boolean; None means the default.

    Raises:
        BadRequest: it is neither.
    """
    if value is None:
        return default
    if type(value) is not bool:
        raise BadRequest(f"{param} is {short_repr(value)}, not true or false", param=param)
    return value


def check_id(value: Any) -> None:
    """Check that an id, which is returned unchanged, can be written as JSON in UTF-8.

    Raises:
        BadRequest: it cannot.
    """
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise BadRequest("id cannot be written as JSON in UTF-8", param="id") from None
