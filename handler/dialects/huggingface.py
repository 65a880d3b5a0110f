"""Hugging Face's Inference API and compatible servers: `inputs` and `parameters`.

{"inputs": str | [str], "parameters": {"max_new_tokens", "stop", "return_full_text", "details",
"allow_special", and the fields of `request.SAMPLING`}} -> [{"generated_text": …}]

As in Hugging Face's text-generation-inference, tokens are sampled if `do_sample` is true or if
`temperature` (other than 1), `top_k` or `top_p` (below 1) is set; the default temperature is then
1.
Source: https://huggingface.co/docs/inference-providers/tasks/text-generation
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.dialects import request as shared
from handler.dialects.request import Dialect, Request
from handler.errors import BadRequest, status_of

if TYPE_CHECKING:
    from gpt2core.sampling import Sampling
    from handler.completions import Completion, Piece
    from handler.telemetry import Report

FIELDS = ("inputs", "parameters", "stream", "options")
# Parameters that clients send by default, with the only supported value.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "num_return_sequences": (1,),
    "best_of": (1,),
    "decoder_input_details": (False,),
    "watermark": (False,),
}
PARAMETERS = ("max_new_tokens", "stop", "return_full_text", "details", "allow_special", "do_sample",
              *shared.SAMPLING)  # fmt: skip
# Parameters of text-generation-inference that are not supported.
UNSUPPORTED = ("typical_p", "top_n_tokens", "truncate", "grammar", "adapter_id")
# Hugging Face's finish reasons. "deadline" has no equivalent.
_FINISH_REASONS = {"length": "length", "stop": "stop_sequence", "eos": "eos_token"}


class HuggingFace(Dialect):
    """See `Dialect`."""

    routes: Mapping[str, tuple[str, ...]] = {"/": ("POST",), "/generate": ("POST",)}
    text_fields = ("inputs",)

    def recognizes(self, fields: Mapping[str, Any]) -> bool:
        """Whether there is a field `inputs`."""
        return "inputs" in fields

    def from_form(self, form: Mapping[str, list[str]]) -> dict[str, Any]:
        """All fields of a form except `inputs` are parameters."""
        parameters = super().from_form(form)
        return {"inputs": parameters.pop("inputs"), "parameters": parameters}

    def parse(self, fields: Mapping[str, Any]) -> Request:
        """See `Dialect`."""
        shared.check_known(fields, FIELDS)
        if not isinstance(fields.get("options") or {}, dict):
            raise BadRequest(
                f"options is {shared.short_repr(fields['options'])}, not an object", param="options"
            )
        parameters = _parameters(fields)
        prompts, is_list = shared.prompts_of(fields["inputs"], "inputs")
        stream = shared.stream_flag(fields, is_list, "inputs")
        sampling, has_seed = _sampling(parameters)
        return Request(
            dialect=self,
            prompts=prompts,
            is_list=is_list,
            max_new_tokens=shared.checked_count(
                parameters.get("max_new_tokens"), "parameters.max_new_tokens"
            ),
            stop=shared.stops_of(parameters.get("stop"), "parameters.stop"),
            return_full_text=_flag(parameters, "return_full_text", True),
            details=_flag(parameters, "details", False),
            allow_special=_flag(parameters, "allow_special", True),
            sampling=sampling,
            has_seed=has_seed,
            logprobs=0 if stream else None,  # every event has the logprob of its token
            stream=stream,
        )

    def param(self, name: str) -> str:
        """`inputs` for the prompt, `parameters.NAME` for other fields."""
        return "inputs" if name == "prompt" else f"parameters.{name}"

    def render(
        self,
        request: Request,
        completions: "Sequence[Completion]",
        report: "Report",  # noqa: ARG002 (the format has no field for it)
    ) -> list[dict[str, Any]]:
        """One object for each prompt."""
        return [_item(request, completion) for completion in completions]

    def events(
        self,
        request: Request,
        pieces: "Iterator[Piece]",
        report: "Callable[[], Report]",  # noqa: ARG002 (the format has no field for it)
    ) -> "Iterator[dict[str, Any]]":
        """An event for each token, including the end-of-text token; the last has the whole text."""
        number = 0
        for piece in pieces:
            tokens = [
                {
                    "id": token.id,
                    "text": token.text,
                    "logprob": token.scored.logprob if token.scored else 0.0,
                    "special": token.is_special,
                }
                for token in piece.tokens
            ]
            if piece.completion and not tokens:  # ended by the deadline, or max_new_tokens is 0
                tokens = [{"id": 0, "text": "", "logprob": 0.0, "special": True}]
            for token in tokens:
                number += 1
                event = {"index": number, "token": token, "generated_text": None, "details": None}
                if piece.completion and token is tokens[-1]:
                    item = _item(request._replace(details=True), piece.completion)
                    item["details"]["input_length"] = piece.completion.prompt_tokens
                    event |= item
                yield event

    def error_event(self, error: GPT2Error) -> dict[str, Any]:
        """A flat object, as in text-generation-inference, whose client reads `error_type`."""
        return {"error": error.message, "error_type": _error_type(error)}

    def texts(self, reply: list[dict[str, Any]]) -> list[str]:
        """See `Dialect`."""
        return [item["generated_text"] for item in reply]

    def describe(self) -> dict[str, Any]:
        """See `Dialect`."""
        from handler.dialects import schemas as s

        parameters = {
            "max_new_tokens": s.COUNT, "stop": s.STOP, "return_full_text": s.FLAG,
            "details": s.FLAG, "allow_special": s.FLAG, "do_sample": s.FLAG,
            **s.sampling(), **{name: {"enum": [*values]} for name, values in NEUTRAL.items()},
        }  # fmt: skip
        fields = {"inputs": s.TEXTS, "parameters": s.request(parameters), "stream": s.FLAG,
                  "options": s.OBJECT}  # fmt: skip
        item = s.object_of(generated_text=s.TEXT)
        item["properties"]["details"] = s.OBJECT
        kinds = ["validation", "overloaded", "generation"]
        return {
            "request": s.request(fields, "inputs"),
            "reply": {"type": "array", "items": item},
            "error": s.object_of(error=s.TEXT, error_type={"enum": kinds}),
        }


def _parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
    parameters = fields.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadRequest(
            f"parameters is {shared.short_repr(parameters)}, not an object", param="parameters"
        )
    for name in UNSUPPORTED:
        if parameters.get(name) is not None:
            raise BadRequest(
                f"parameters.{name} is not supported: remove it",
                param=f"parameters.{name}",
            )
    ours = {n: v for n, v in parameters.items() if n not in NEUTRAL and n not in UNSUPPORTED}
    shared.check_known(ours, PARAMETERS, "parameters.")
    for name, accepted in NEUTRAL.items():
        value = parameters.get(name)
        if value is not None and value not in accepted:
            raise BadRequest(
                f"parameters.{name} is {shared.short_repr(value)}; only"
                f" {shared.short_repr(accepted[0])} is supported",
                param=f"parameters.{name}",
            )
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    return shared.checked_flag(parameters.get(name), f"parameters.{name}", default)


def _sampling(parameters: Mapping[str, Any]) -> "tuple[Sampling | None, bool]":
    """`sampling_of`; the default temperature is 1 if another field enables sampling."""
    do_sample = _flag(parameters, "do_sample", False)
    sampling, has_seed = shared.sampling_of(parameters, "parameters.")
    if sampling is None:
        if not do_sample:
            return None, False
        from gpt2core.sampling import Sampling

        sampling = Sampling()
    samples = do_sample or sampling.top_k or sampling.top_p < 1
    if parameters.get("temperature") is None:
        sampling = sampling._replace(temperature=1.0 if samples else 0.0)
    elif sampling.temperature == 1 and not samples:
        sampling = sampling._replace(temperature=0.0)
    return sampling, has_seed


def _error_type(error: GPT2Error) -> str:
    status = status_of(error)
    return "overloaded" if status == 429 else "validation" if status < 500 else "generation"


def _item(request: Request, c: "Completion") -> dict[str, Any]:
    item: dict[str, Any] = {
        "generated_text": c.prompt + c.text if request.return_full_text else c.text
    }
    if request.details:
        item["details"] = {
            "finish_reason": _FINISH_REASONS.get(c.finish_reason, c.finish_reason),
            "generated_tokens": len(c.ids),
        }
        if c.seed is not None:
            item["details"]["seed"] = c.seed
    return item


DIALECT = HuggingFace()
