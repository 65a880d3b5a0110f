"""OpenAI's completions: `POST /v1/completions`, `GET /v1/models`, `GET /v1/models/{id}`.

Source: https://platform.openai.com/docs/api-reference/completions. Differences, see docs/api.md:
the default temperature is 0, `logprobs` are those of the model before sampling parameters apply,
and more stop strings are allowed.
"""

import codecs
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import time

from gpt2core.errors import GPT2Error, PromptTooLong
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.dialects import request as shared
from handler.dialects.request import Dialect, Request
from handler.errors import (
    BadRequest,
    LimitExceeded,
    ModelNotServed,
    RouteNotFound,
    TooManyRequests,
    Unauthorized,
    status_of,
)

if TYPE_CHECKING:
    from handler.completions import Completion, Piece, ScoredToken
    from handler.jobs import Job
    from handler.telemetry import Report

COMPLETIONS = "/v1/completions"
MODELS = "/v1/models"
DEFAULT_NEW_TOKENS = 16
MAX_LOGPROBS = 5
FIELDS = (
    "model", "prompt", "max_tokens", "stop", "echo", "logprobs", "n", "best_of", "stream",
    "stream_options", "user", "allow_special", *shared.SAMPLING,
)  # fmt: skip
# OpenAI's reasons are `stop` and `length`.
_FINISH_REASONS = {"eos": "stop", "deadline": "length"}


class OpenAI(Dialect):
    """See `Dialect`. Its fields are also those of the native dialect: only the path selects it."""

    routes: Mapping[str, tuple[str, ...]] = {
        COMPLETIONS: ("POST",),
        MODELS: ("GET",),
        f"{MODELS}/": ("GET",),
    }
    text_fields = ("prompt", "model", "user")

    def read(self, path: str) -> "Job":
        """The job for a GET request: list the models, or look up one."""
        from handler.jobs import Models

        return Models(path[len(MODELS) + 1 :] or None)

    def parse(self, fields: Mapping[str, Any]) -> Request:
        """See `Dialect`."""
        if "prompt" not in fields or fields["prompt"] is None:
            raise BadRequest(f"prompt is missing: send {shared.EXAMPLE}", param="prompt")
        if fields.get("suffix") is not None:
            raise BadRequest("suffix is not supported: GPT-2 cannot insert text", param="suffix")
        shared.check_known({k: v for k, v in fields.items() if k != "suffix"}, FIELDS)
        for name, kind, what in (("user", str, "a string"), ("model", str, "a string"),
                                 ("stream_options", dict, "an object")):  # fmt: skip
            if not isinstance(fields.get(name), kind | None):
                raise BadRequest(
                    f"{name} is {shared.short_repr(fields[name])}, not {what}", param=name
                )
        prompts, is_list = _prompts(fields["prompt"])
        stream, include_usage = _stream(fields)
        sampling, has_seed = shared.sampling_of(fields)
        echo = shared.checked_flag(fields.get("echo"), "echo", False)
        logprobs = _integer(fields, "logprobs", 0, MAX_LOGPROBS)
        return Request(
            dialect=self,
            prompts=prompts,
            is_list=is_list,
            max_new_tokens=shared.checked_count(fields.get("max_tokens"), "max_tokens"),
            stop=shared.stops_of(fields.get("stop"), "stop"),
            return_full_text=echo,
            allow_special=shared.checked_flag(fields.get("allow_special"), "allow_special", True),
            default_new_tokens=DEFAULT_NEW_TOKENS,
            sampling=sampling,
            has_seed=has_seed,
            n=_n(fields, len(prompts)),
            logprobs=logprobs,
            has_prompt_logprobs=echo and logprobs is not None,
            model=fields.get("model"),
            stream=stream,
            include_usage=include_usage,
        )

    def param(self, name: str) -> str:
        """`max_tokens` for `max_new_tokens`."""
        return "max_tokens" if name == "max_new_tokens" else name

    def render(
        self, request: Request, completions: "Sequence[Completion]", report: "Report"
    ) -> dict[str, Any]:
        """A `text_completion` object."""
        choices = [_Choice(request, i).whole(c) for i, c in enumerate(completions)]
        return _head(report) | {"choices": choices, "usage": _usage(request, completions)}

    def events(
        self, request: Request, pieces: "Iterator[Piece]", report: "Callable[[], Report]"
    ) -> "Iterator[dict[str, Any] | str]":
        """A `text_completion` object for each piece, one with the usage if requested, and `[DONE]`.

        With `echo` and `logprobs` a choice is sent in one piece at its end, when the logprobs of
        its prompt are known.
        """
        choices: dict[int, _Choice] = {}
        done: dict[int, Completion] = {}
        no_usage = {"usage": None} if request.include_usage else {}
        head: dict[str, Any] | None = None
        for piece in pieces:
            head = head or _head(report())
            choice = choices.get(piece.completion_index)
            if choice is None:
                choice = choices[piece.completion_index] = _Choice(request, piece.completion_index)
            if piece.completion:
                done[piece.completion_index] = piece.completion
            if request.has_prompt_logprobs:
                if piece.completion:
                    yield head | {"choices": [choice.whole(piece.completion)]} | no_usage
            else:
                yield head | {"choices": [choice.chunk(piece)]} | no_usage
        if request.include_usage and head:
            completions = [done[i] for i in sorted(done)]
            yield head | {"choices": [], "usage": _usage(request, completions)}
        yield "[DONE]"

    def error_event(self, error: GPT2Error) -> Any:
        """See `Dialect`."""
        return self.render_error(error)[1]

    def texts(self, reply: dict[str, Any]) -> list[str]:
        """See `Dialect`."""
        return [choice["text"] for choice in reply["choices"]]

    def render_error(self, error: GPT2Error) -> tuple[int, Any]:
        """OpenAI's error object, with status 400 instead of 422."""
        status = status_of(error)
        status = 400 if status == 422 else status
        kind = "invalid_request_error" if status < 500 else "server_error"
        code = None
        if isinstance(error, PromptTooLong) or (
            isinstance(error, LimitExceeded) and error.param == "max_tokens"
        ):
            code = "context_length_exceeded"
        elif isinstance(error, Unauthorized):
            code = "invalid_api_key"
        elif isinstance(error, ModelNotServed):
            code = "model_not_found"
        elif isinstance(error, RouteNotFound):
            code = "unknown_url"
        elif isinstance(error, TooManyRequests):
            kind, code = "rate_limit_error", "rate_limit_exceeded"
        fields = {"message": error.message, "type": kind, "param": error.param, "code": code}
        return status, {"error": fields}

    def describe(self) -> dict[str, Any]:
        """See `Dialect`."""
        from handler.dialects import schemas as s

        ids = s.list_of(s.COUNT, 2**31)
        choices = {"type": "integer", "minimum": 1, "maximum": shared.MAX_PROMPTS}
        fields = {
            "model": s.TEXT,
            "prompt": {"anyOf": [*s.TEXTS["anyOf"], ids, s.list_of(ids)]},
            "max_tokens": s.COUNT | {"default": DEFAULT_NEW_TOKENS},
            "stop": s.STOP,
            "echo": s.FLAG,
            "logprobs": {"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS},
            "n": choices,
            "best_of": choices | {"description": "Must be equal to n."},
            "stream": s.FLAG,
            "stream_options": s.request({"include_usage": s.FLAG}),
            "user": s.TEXT,
            "allow_special": s.FLAG,
        }
        choice = s.object_of(
            text=s.TEXT,
            index=s.COUNT,
            logprobs=s.or_null(s.OBJECT),
            finish_reason={"enum": ["length", "stop"]},
        )
        usage = s.object_of(prompt_tokens=s.COUNT, completion_tokens=s.COUNT, total_tokens=s.COUNT)
        model = s.object_of(id=s.TEXT, object={"const": "model"}, created=s.COUNT, owned_by=s.TEXT)
        models = s.object_of(object={"const": "list"}, data={"type": "array", "items": model})
        error = s.object_of(
            message=s.TEXT, type=s.TEXT, param=s.or_null(s.TEXT), code=s.or_null(s.TEXT)
        )
        return {
            "summary": "Continue prompts (OpenAI completions)",
            "request": s.request(fields | s.sampling(), "prompt"),
            "reply": s.object_of(
                id=s.TEXT,
                object={"const": "text_completion"},
                created=s.COUNT,
                model=s.TEXT,
                choices={"type": "array", "items": choice},
                usage=usage,
            ),
            "error": s.object_of(error=error),
            "reads": {
                MODELS: ("List the models, without opening them", models),
                f"{MODELS}/": ("Look up a model", model),
            },
        }


def model_id(name: str) -> str:
    """The model id for clients; `owner/name` for a model from the Hub."""
    return name.removeprefix("hf://")


def models(name: str, wanted: str | None) -> dict[str, Any]:
    """A list with the served model, or the model itself if `wanted` names it.

    Raises:
        ModelNotServed: `wanted` is another model.
    """
    # The creation time is unknown.
    model = {"id": model_id(name), "object": "model", "created": 0, "owned_by": "gpt2-lambda"}
    if wanted is None:
        return {"object": "list", "data": [model]}
    # Double slashes in paths have been merged.
    known = [n.replace("//", "/") for n in (name, model_id(name))]
    if wanted.replace("//", "/") not in known:
        raise ModelNotServed(
            f"model {shared.short_repr(wanted)} is not available: use {model_id(name)}",
            param="model",
        )
    return model


def _prompts(value: Any) -> tuple[tuple[str | tuple[int, ...], ...], bool]:
    """A string, a list of strings, token ids, or a list of lists of ids."""
    if isinstance(value, list) and value and type(value[0]) is int:
        return (_ids(value, "prompt"),), False
    if isinstance(value, list) and value and isinstance(value[0], list):
        if len(value) > shared.MAX_PROMPTS:
            raise LimitExceeded(
                f"prompt has {len(value)} entries; the limit is {shared.MAX_PROMPTS}",
                param="prompt",
            )
        return tuple(_ids(ids, f"prompt[{i}]") for i, ids in enumerate(value)), True
    return shared.prompts_of(value, "prompt")


def _ids(value: Any, param: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise BadRequest(
            f"{param} is {shared.short_repr(value)}, not a list of token ids", param=param
        )
    if not value:
        raise BadRequest(f"{param} is an empty list: send at least one token id", param=param)
    for i, token in enumerate(value):
        if type(token) is not int:
            raise BadRequest(
                f"{param}[{i}] is {shared.short_repr(token)}, not a token id", param=param
            )
    return tuple(value)


def _stream(fields: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether to stream, and whether the last event has the token counts."""
    stream = shared.checked_flag(fields.get("stream"), "stream", False)
    options = fields.get("stream_options") or {}
    if options and not stream:
        raise BadRequest("stream_options requires stream: true", param="stream_options")
    shared.check_known(options, ("include_usage",), "stream_options.")
    name = "stream_options.include_usage"
    return stream, shared.checked_flag(options.get("include_usage"), name, False)


def _n(fields: Mapping[str, Any], prompts: int) -> int:
    """Number of choices for each of the prompts."""
    n = _integer(fields, "n", 1, shared.MAX_PROMPTS) or 1
    best_of = _integer(fields, "best_of", 1, shared.MAX_PROMPTS)
    if best_of not in (None, n):
        raise BadRequest(
            f"best_of is {best_of} and n is {n}: they must be equal, because all choices are"
            " returned",
            param="best_of",
        )
    if prompts * n > shared.MAX_PROMPTS:
        raise LimitExceeded(
            f"{prompts} prompts with n = {n} exceed the limit of {shared.MAX_PROMPTS} choices",
            param="n",
        )
    return n


def _integer(fields: Mapping[str, Any], name: str, minimum: int, maximum: int) -> int | None:
    value = fields.get(name)
    if value is not None and (type(value) is not int or not minimum <= value <= maximum):
        raise BadRequest(
            f"{name} is {shared.short_repr(value)}, not an integer from {minimum} to {maximum}",
            param=name,
        )
    return value


def _head(report: "Report") -> dict[str, Any]:
    return {
        "id": f"cmpl-{os.urandom(12).hex()}",
        "object": "text_completion",
        "created": int(time()),
        "model": model_id(report.model or ""),
    }


def _usage(request: Request, completions: "Sequence[Completion]") -> dict[str, int]:
    prompt_tokens = sum(c.prompt_tokens for c in completions[:: request.n])
    completion_tokens = sum(len(c.ids) for c in completions)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class _Choice:
    """One choice, complete or in chunks."""

    def __init__(self, request: Request, index: int) -> None:
        self._request = request
        self._index = index
        self._length = 0  # of the text in the chunks, without the prompt
        self._offsets = _Offsets()
        self._echo = request.return_full_text

    def whole(self, c: "Completion") -> dict[str, Any]:
        """The complete choice."""
        text, before = c.text, list(c.prompt_scores)
        logprobs = None
        if self._request.logprobs is not None:
            begin = len(c.prompt) if self._echo else 0
            offsets = _Offsets().of(before, len(c.prompt), is_prompt=True)
            offsets += [begin + at for at in _Offsets().of(c.tokens, len(text))]
            logprobs = _logprobs([*before, *c.tokens], offsets)
        return self._fields(c.prompt + text if self._echo else text, logprobs, c)

    def chunk(self, piece: "Piece") -> dict[str, Any]:
        """A chunk of the choice; with `echo` the first chunk starts with the prompt."""
        text = "".join(token.text for token in piece.tokens)
        self._length += len(text)
        logprobs = None
        if self._request.logprobs is not None:
            scored = [token.scored for token in piece.tokens if token.scored]
            logprobs = _logprobs(scored, self._offsets.of(scored, self._length))
        if self._echo:
            self._echo, text = False, f"{piece.prompt}{text}"
        return self._fields(text, logprobs, piece.completion)

    def _fields(
        self, text: str, logprobs: dict[str, Any] | None, c: "Completion | None"
    ) -> dict[str, Any]:
        return {
            "text": text,
            "index": self._index,
            "logprobs": logprobs,
            "finish_reason": _FINISH_REASONS.get(c.finish_reason, c.finish_reason) if c else None,
        }


def _logprobs(tokens: "Sequence[ScoredToken]", offsets: list[int]) -> dict[str, Any]:
    """Tokens, including the end-of-text token. Offsets are in characters of the choice's text."""
    return {
        "tokens": [_token_text(token.text) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top(token) for token in tokens],
        "text_offset": offsets,
    }


class _Offsets:
    """Offsets of tokens in the text; a token inside a character has the character's offset."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def of(
        self, tokens: "Sequence[ScoredToken]", length: int, *, is_prompt: bool = False
    ) -> list[int]:
        """The offsets of the next tokens; `length` is the length of the text after them."""
        found = []
        for token in tokens:
            found.append(min(self._at, length))
            if token.in_text or is_prompt:
                self._at += len(self._decoder.decode(token.text))
        return found


def _top(token: "ScoredToken") -> dict[str, float] | None:
    """The most likely tokens and the chosen one; for equal texts the higher logprob counts."""
    if token.logprob is None:
        return None
    top: dict[str, float] = {}
    for text, logprob in (*token.top, (token.text, token.logprob)):
        top.setdefault(_token_text(text), logprob)
    return top


def _token_text(token: bytes) -> str:
    r"""A token's text, or `bytes:\xe2\x80` if it has incomplete characters."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


DIALECT = OpenAI()
