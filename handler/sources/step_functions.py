"""Batches from the ItemBatcher of an AWS Step Functions Distributed Map.

Shape: AWS Step Functions Developer Guide, "ItemBatcher": `Items`, and `BatchInput` if the state
machine sets it. Without an ItemBatcher, an item arrives as a direct invoke.
"""

import json
from collections.abc import Mapping, Sequence

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.dialects.native import error_of
from handler.errors import BadRequest, BodyTooLarge
from handler.items import Item, parse_item, result_of
from handler.jobs import Items, Job
from handler.sources.source import Source

if TYPE_CHECKING:
    from handler.completions import Completion
    from handler.settings import Settings
    from handler.telemetry import Report

# AWS Step Functions Developer Guide, "Quotas": input or output of a state, 256 KiB.
MAX_STATE_BYTES = 256 * 1024
MAX_ID_BYTES = 64  # longer ids are omitted from results that do not fit


def recognize(event: dict[str, Any]) -> "StepFunctions | None":
    """The source of a batch, or None for other events with `Items`, such as a DynamoDB scan."""
    return StepFunctions(event) if event.keys() <= {"Items", "BatchInput"} else None


class StepFunctions(Source):
    """A batch of requests. Raised errors are those that a retry can resolve."""

    kind = "step_functions"

    def parse(self, settings: "Settings") -> Job:  # noqa: ARG002
        """The items. `BatchInput` has defaults for all; an invalid item gets an error as result.

        Raises:
            BadRequest: the event is not a valid batch.
        """
        items, defaults = self._event["Items"], self._event.get("BatchInput")
        if not isinstance(items, list):
            raise BadRequest("Items is not an array", param="Items")
        if defaults is not None and not isinstance(defaults, dict):
            raise BadRequest("BatchInput is not an object", param="BatchInput")
        return Items(tuple(parse_item(item, defaults) for item in items))

    def reply(
        self,
        result: "Sequence[tuple[Item, Sequence[Completion] | GPT2Error]]",
        report: "Report",  # noqa: ARG002
    ) -> dict[str, Any]:
        """A result for each item, within the size limit of Step Functions.

        Results that do not fit are replaced by an error.

        Raises:
            BodyTooLarge: even the errors do not fit.
        """
        bodies = [
            {"status": "error" if isinstance(done, GPT2Error) else "ok", "index": index}
            | result_of(item, done)
            for index, (item, done) in enumerate(result)
        ]
        fallbacks = [_does_not_fit(body) for body in bodies]
        size = len(json.dumps({"results": fallbacks}).encode())  # in ASCII: an upper bound
        if size > MAX_STATE_BYTES:
            raise BodyTooLarge(
                f"the reply to {len(bodies)} items exceeds {MAX_STATE_BYTES} bytes: reduce"
                " MaxItemsPerBatch"
            )
        results = []
        for body, error in zip(bodies, fallbacks, strict=True):
            more = len(json.dumps(body)) - len(json.dumps(error))
            fits = size + more <= MAX_STATE_BYTES
            results.append(body if fits else error)
            size += more if fits else 0
        return {"results": results}


def _does_not_fit(body: Mapping[str, Any]) -> dict[str, Any]:
    """The error for an item whose result does not fit; includes a short id."""
    error = BodyTooLarge(
        f"the reply to the batch exceeds {MAX_STATE_BYTES} bytes: reduce MaxItemsPerBatch"
    )
    name = body["id"] if len(json.dumps(body["id"])) <= MAX_ID_BYTES else None
    return {"status": "error", "index": body["index"], "id": name} | error_of(error)
