"""The native format: `POST /generate`, direct invocations, lines of batch files, queue messages.

{"prompt": str | [str], "max_new_tokens", "stop", "return_full_text", "stream", "allow_special",
"id", and the fields of `request.SAMPLING`} -> {"generated_text", "finish_reason", "usage", …}, or
{"generations": […], …} for a list; with "seed" if tokens were sampled. A stream has an event
{"token": {"id", "text"}} for each token, and the reply as its last event.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.dialects import request as shared
from handler.dialects.request import Dialect, Request
from handler.errors import BadRequest

if TYPE_CHECKING:
    from handler.completions import Completion, Piece
    from handler.telemetry import Report

FIELDS = ("prompt", "max_new_tokens", "stop", "return_full_text", "stream", "allow_special", "id",
          *shared.SAMPLING)  # fmt: skip


class Native(Dialect):
    """See `Dialect`."""

    routes: Mapping[str, tuple[str, ...]] = {"/": ("POST",), "/generate": ("POST",)}
    text_fields = ("prompt", "id")

    def recognizes(self, fields: Mapping[str, Any]) -> bool:
        """Whether there is a field `prompt`."""
        return "prompt" in fields

    def parse(self, fields: Mapping[str, Any]) -> Request:
        """See `Dialect`."""
        if "prompt" not in fields:
            raise BadRequest(f"prompt is missing: send {shared.EXAMPLE}", param="prompt")
        if "inputs" in fields:
            raise BadRequest("send either prompt or inputs, not both", param="prompt")
        shared.check_known(fields, FIELDS)
        prompts, is_list = shared.prompts_of(fields["prompt"], "prompt")
        has_id = fields.get("id") is not None
        if has_id:
            shared.check_id(fields["id"])
        sampling, has_seed = shared.sampling_of(fields)
        return Request(
            dialect=self,
            prompts=prompts,
            is_list=is_list,
            max_new_tokens=shared.checked_count(fields.get("max_new_tokens"), "max_new_tokens"),
            stop=shared.stops_of(fields.get("stop"), "stop"),
            return_full_text=shared.checked_flag(
                fields.get("return_full_text"), "return_full_text", False
            ),
            has_id=has_id,
            id=fields.get("id"),
            allow_special=shared.checked_flag(fields.get("allow_special"), "allow_special", True),
            sampling=sampling,
            has_seed=has_seed,
            stream=shared.stream_flag(fields, is_list, "prompt"),
        )

    def render(
        self, request: Request, completions: "Sequence[Completion]", report: "Report"
    ) -> dict[str, Any]:
        """The text or texts, with the report."""
        body = text_of(request, completions) | report.fields()
        if completions[0].seed is not None:
            body["seed"] = completions[0].seed
        return body | ({"id": request.id} if request.has_id else {})

    def events(
        self, request: Request, pieces: "Iterator[Piece]", report: "Callable[[], Report]"
    ) -> "Iterator[dict[str, Any]]":
        """An event for each token, then the reply."""
        for piece in pieces:
            for token in piece.tokens:
                yield {"token": {"id": token.id, "text": token.text}}
            if piece.completion:
                yield self.render(request, [piece.completion], report())

    def error_event(self, error: GPT2Error) -> dict[str, Any]:
        """See `Dialect`."""
        return error_of(error)

    def texts(self, reply: dict[str, Any]) -> list[str]:
        """See `Dialect`."""
        return [item["generated_text"] for item in reply.get("generations", [reply])]

    def describe(self) -> dict[str, Any]:
        """See `Dialect`."""
        from handler.dialects import schemas as s

        item = {
            "generated_text": s.TEXT,
            "finish_reason": {"enum": ["length", "stop", "eos", "deadline"]},
            "usage": s.object_of(prompt_tokens=s.COUNT, completion_tokens=s.COUNT),
        }
        items = {"type": "array", "items": s.object_of(**item)}
        fields = {
            "prompt": s.TEXTS, "max_new_tokens": s.COUNT, "stop": s.STOP,
            "return_full_text": s.FLAG, "stream": s.FLAG, "allow_special": s.FLAG, "id": {},
        }  # fmt: skip
        return {
            "request": s.request(fields | s.sampling(), "prompt"),
            "reply": {
                "anyOf": [
                    s.object_of(**item, **s.REPORT),
                    s.object_of(generations=items, **s.REPORT),
                ]
            },
            "error": s.object_of(
                error=s.object_of(type=s.TEXT, message=s.TEXT, param=s.or_null(s.TEXT))
            ),
        }


def text_of(request: Request, completions: "Sequence[Completion]") -> dict[str, Any]:
    """The part of a reply that depends only on the request; batch results contain only this."""
    items = [
        {
            "generated_text": c.prompt + c.text if request.return_full_text else c.text,
            "finish_reason": c.finish_reason,
            "usage": {"prompt_tokens": c.prompt_tokens, "completion_tokens": len(c.ids)},
        }
        for c in completions
    ]
    return {"generations": items} if request.is_list else items[0]


def error_of(error: GPT2Error) -> dict[str, Any]:
    """The error object of a reply."""
    fields = {"type": type(error).__name__, "message": error.message, "param": error.param}
    return {"error": fields}


DIALECT = Native()
