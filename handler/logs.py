"""What the function says of its work: JSON lines on stderr, which Lambda hands to CloudWatch Logs.

No line holds a prompt, a text or a credential: lengths, counts, ids and types only. The line of an
invoke carries its metrics in CloudWatch's embedded format (Amazon CloudWatch User Guide,
"Specification: Embedded metric format"), so that no client has to send them.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from gpt2core.errors import GPT2Error
from handler.generation import Counts
from handler.replies import Report

NAMESPACE = "gpt2-lambda"
_UNITS = {
    "Requests": "Count",
    "Errors": "Count",
    "PromptTokens": "Count",
    "CompletionTokens": "Count",
    "ColdStarts": "Count",
    "Duration": "Milliseconds",
}
MAX_ERRORS = 20  # lines about a batch's messages


def log_invoke(
    source: str, counts: Counts, error: BaseException | None, report: Report, context: Any
) -> None:
    """One line about an invoke, whatever came of it."""
    line: dict[str, Any] = {
        "level": "INFO",
        "message": "cold start" if report.cold_start else "invoke",
        "request_id": getattr(context, "aws_request_id", None),
        "error": type(error).__name__ if error else None,
        "model": report.model,
        "model_source": report.origin,
        "timings_ms": report.timings_ms,
        "Source": source,
        "Requests": counts.requests,
        "Errors": max(counts.errors, int(error is not None)),
        "PromptTokens": counts.prompt_tokens,
        "CompletionTokens": counts.completion_tokens,
        "ColdStarts": int(report.cold_start),
        "Duration": report.timings_ms["total"],
        "_aws": {
            "Timestamp": round(time.time() * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": NAMESPACE,
                    "Dimensions": [["Source"]],
                    "Metrics": [{"Name": name, "Unit": unit} for name, unit in _UNITS.items()],
                }
            ],
        },
    }
    _write(line)


def log_messages(errors: Mapping[str, GPT2Error]) -> None:
    """A line for each message of a queue that went wrong: its id, and what kind of wrong."""
    for name, error in list(errors.items())[:MAX_ERRORS]:
        _write(
            {
                "level": "WARNING",
                "type": type(error).__name__,
                "message_id": name,
                "param": error.param,
            }
        )
    if len(errors) > MAX_ERRORS:
        _write({"level": "WARNING", "message": f"and {len(errors) - MAX_ERRORS} messages more"})


def log_warning(error: GPT2Error) -> None:
    """A line about what was found broken and can be done without."""
    _write({"level": "WARNING", "type": type(error).__name__, "message": error.message})


def log_error(error: BaseException, context: Any) -> None:
    """A line about a defect. Of an unexpected error only type and place: its text may quote a
    prompt.
    """
    line: dict[str, Any] = {
        "level": "ERROR",
        "type": type(error).__name__,
        "request_id": getattr(context, "aws_request_id", None),
    }
    if isinstance(error, GPT2Error):
        line["message"] = error.message
    else:
        import traceback

        if isinstance(error, ImportError):
            line["module"] = error.name
        frames = traceback.extract_tb(error.__traceback__)
        line["stack"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    _write(line)


def _write(line: Mapping[str, Any]) -> None:
    print(json.dumps(line), file=sys.stderr, flush=True)
