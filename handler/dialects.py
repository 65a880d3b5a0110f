"""The request's fields in the dialects that callers speak -> one `Request`. Pure.

native:        {"prompt", "max_new_tokens", "stop", "return_full_text", "stream", "id"}
Hugging Face:  {"inputs", "parameters": {"max_new_tokens", "stop", "return_full_text", "details"}}
               (https://huggingface.co/docs/inference-providers/tasks/text-generation)

They are told apart by `inputs`. A field that is not listed is refused by name; null is a field
left out.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from handler.errors import BadRequest, LimitExceeded

DEFAULT_NEW_TOKENS = 20
MAX_PROMPTS = 128
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 256  # matching costs their number times their length, for every token
EXAMPLE = '{"prompt": "Once upon a time", "max_new_tokens": 20}'

NATIVE_FIELDS = ("prompt", "max_new_tokens", "stop", "return_full_text", "stream", "id")
HF_FIELDS = ("inputs", "parameters", "stream", "options")
# Parameters that clients send by habit, with the only value that greedy decoding can honour.
HF_NEUTRAL: dict[str, tuple[object, ...]] = {
    "do_sample": (False,),
    "num_return_sequences": (1,),
    "best_of": (1,),
    "decoder_input_details": (False,),
    "repetition_penalty": (1,),
    "frequency_penalty": (0,),
    "watermark": (False,),
}
HF_PARAMETERS = ("max_new_tokens", "stop", "return_full_text", "details")
# Parameters of sampling and of other servers, which greedy decoding has no use for.
HF_REFUSED = ("temperature", "top_k", "top_p", "typical_p", "top_n_tokens", "seed", "truncate",
              "grammar", "adapter_id")  # fmt: skip


class Request(NamedTuple):
    """Prompts to continue, all in the same way."""

    dialect: Literal["native", "huggingface"]
    prompts: tuple[str, ...]
    is_list: bool = False
    """Whether the prompts came as a list, which is how the reply goes back."""
    max_new_tokens: int | None = None
    """None: `DEFAULT_NEW_TOKENS`, or the limit where that is less."""
    stop: tuple[str, ...] = ()
    return_full_text: bool = False
    details: bool = False
    """Hugging Face only: reply with the finish reason and the number of tokens."""
    has_id: bool = False
    id: Any = None

    @property
    def prompt_param(self) -> str:
        """The name of the prompt's field in this dialect."""
        return "prompt" if self.dialect == "native" else "inputs"


def parse_request(fields: Mapping[str, Any]) -> Request:
    """Check the fields of one request.

    Raises:
        BadRequest: a field that is missing, unknown or of the wrong type; `param` names it.
        LimitExceeded: too many prompts or stop strings.
    """
    if "inputs" in fields:
        if "prompt" in fields:
            raise BadRequest("send either prompt or inputs, not both", param="prompt")
        return _huggingface(fields)
    if "prompt" not in fields:
        raise BadRequest(f"prompt is missing: send {EXAMPLE}", param="prompt")
    _refuse_unknown(fields, NATIVE_FIELDS)
    _refuse_stream(fields)
    prompts, is_list = _prompts(fields["prompt"], "prompt")
    has_id = fields.get("id") is not None
    if has_id:
        check_echo(fields["id"])
    return Request(
        "native",
        prompts,
        is_list,
        _count(fields.get("max_new_tokens"), "max_new_tokens"),
        _stops(fields.get("stop"), "stop"),
        _flag(fields.get("return_full_text"), "return_full_text", False),
        has_id=has_id,
        id=fields.get("id"),
    )


def parse_form(body: str) -> dict[str, Any]:
    """An `application/x-www-form-urlencoded` body -> the fields it would have as JSON.

    Raises:
        BadRequest: the body is no form, or repeats a field other than stop.
    """
    from urllib.parse import parse_qs  # 3 ms, and only for forms

    try:
        lists = parse_qs(
            body, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=200
        )
    except ValueError:
        raise BadRequest(f"the body is no form: send prompt=… or {EXAMPLE}", param="body") from None
    fields: dict[str, Any] = {}
    for name, values in lists.items():
        if len(values) > 1 and name != "stop":
            raise BadRequest(f"{shown(name)} is given {len(values)} times", param=_ascii(name))
        value = values[-1]
        if name == "max_new_tokens" and value.isascii() and value.isdigit() and len(value) < 16:
            fields[name] = int(value)
        elif value in ("true", "false") and name in (
            "return_full_text",
            "stream",
            "details",
            "do_sample",
        ):
            fields[name] = value == "true"
        else:
            fields[name] = values if name == "stop" else value
    if "inputs" in fields:
        inputs = fields.pop("inputs")
        return {"inputs": inputs, "parameters": fields}
    return fields


def shown(value: Any) -> str:
    """A value for an error message: short, in ASCII, on one line; of a container only its type."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (dict, list)):
        return f"an {'object' if isinstance(value, dict) else 'array'}"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _ascii(name: str) -> str:
    """A caller's field name as an error's `param`: it may hold anything a JSON string can."""
    return ascii(name)[1:-1][:80]


def _huggingface(fields: Mapping[str, Any]) -> Request:
    _refuse_unknown(fields, HF_FIELDS)
    _refuse_stream(fields)
    parameters = fields.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise BadRequest(f"parameters is {shown(parameters)}, not an object", param="parameters")
    if not isinstance(fields.get("options") or {}, dict):
        raise BadRequest(f"options is {shown(fields['options'])}, not an object", param="options")
    for name in HF_REFUSED:
        if parameters.get(name) is not None:
            raise BadRequest(
                f"{name} is not supported, decoding is greedy: leave it out",
                param=f"parameters.{name}",
            )
    ours = {n: v for n, v in parameters.items() if n not in HF_NEUTRAL and n not in HF_REFUSED}
    _refuse_unknown(ours, HF_PARAMETERS, "parameters.")
    for name, accepted in HF_NEUTRAL.items():
        value = parameters.get(name)
        if value is not None and value not in accepted:
            raise BadRequest(
                f"{name} is {shown(value)}: greedy decoding allows only {shown(accepted[0])}",
                param=f"parameters.{name}",
            )
    prompts, is_list = _prompts(fields["inputs"], "inputs")
    return Request(
        "huggingface",
        prompts,
        is_list,
        _count(parameters.get("max_new_tokens"), "parameters.max_new_tokens"),
        _stops(parameters.get("stop"), "parameters.stop"),
        _flag(parameters.get("return_full_text"), "parameters.return_full_text", True),
        _flag(parameters.get("details"), "parameters.details", False),
    )


def _refuse_unknown(fields: Mapping[str, Any], known: tuple[str, ...], prefix: str = "") -> None:
    for name in fields:
        if name not in known:
            raise BadRequest(
                f"unknown field {shown(name)}: known are {', '.join(known)}",
                param=prefix + _ascii(str(name)),
            )


def _refuse_stream(fields: Mapping[str, Any]) -> None:
    if _flag(fields.get("stream"), "stream", False):
        raise BadRequest(
            "this function's replies are not streamed: leave stream out", param="stream"
        )


def _prompts(value: Any, param: str) -> tuple[tuple[str, ...], bool]:
    prompts = value if isinstance(value, list) else [value]
    if not prompts:
        raise BadRequest(f"{param} is an empty list: send at least one", param=param)
    if len(prompts) > MAX_PROMPTS:
        raise LimitExceeded(
            f"{param} has {len(prompts)} entries, over the limit of {MAX_PROMPTS}: send less",
            param=param,
        )
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            where = f"{param}[{i}]" if isinstance(value, list) else param
            raise BadRequest(f"{where} is {shown(prompt)}, not a string", param=where)
    return tuple(prompts), isinstance(value, list)


def _count(value: Any, param: str) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise BadRequest(f"{param} is {shown(value)}, not a whole number from 0", param=param)
    return value


def _stops(value: Any, param: str) -> tuple[str, ...]:
    stops = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(s, str) and s for s in stops):
        raise BadRequest(f"{param} must be a non-empty string or a list of them", param=param)
    if any(len(s) > MAX_STOP_CHARACTERS for s in stops):
        raise LimitExceeded(
            f"{param} has a string over the limit of {MAX_STOP_CHARACTERS} characters", param=param
        )
    if len(stops) > MAX_STOPS:
        raise LimitExceeded(
            f"{param} has {len(stops)} entries and the limit is {MAX_STOPS}", param=param
        )
    return tuple(stops)


def _flag(value: Any, param: str, default: bool) -> bool:
    if value is None:
        return default
    if type(value) is not bool:
        raise BadRequest(f"{param} is {shown(value)}, not true or false", param=param)
    return value


def check_echo(value: Any) -> None:
    """An id goes back as it came, so it must survive JSON in UTF-8.

    Raises:
        BadRequest: it does not.
    """
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise BadRequest("id cannot be written as JSON in UTF-8", param="id") from None
