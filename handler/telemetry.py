"""Timings, the report in replies, and JSON log lines with metrics on stderr.

Lambda sends the lines to CloudWatch Logs. Lines never contain prompts, generated text or
credentials, only lengths, counts, ids and types. The line of an invocation carries its metrics in
CloudWatch's embedded metric format (Amazon CloudWatch User Guide, "Specification: Embedded metric
format"), which needs no client.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from time import perf_counter

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any, NamedTuple
from handler.errors import Cancelled, Unauthorized

if TYPE_CHECKING:
    from handler.completions import Completion

PHASES = ("process", "import", "source", "map", "tokenizer", "prefill", "decode", "total")
NAMESPACE = "gpt2-lambda"
_UNITS = {
    "Requests": "Count",
    "Errors": "Count",
    "PromptTokens": "Count",
    "CompletionTokens": "Count",
    "ColdStarts": "Count",
    "Duration": "Milliseconds",
}
MAX_ERRORS = 20  # log lines about messages of one batch


class Timings:
    """Durations of the phases of one invocation; 0 for phases that did not happen."""

    def __init__(self) -> None:
        self._ms = dict.fromkeys(PHASES, 0.0)
        self._earlier = 0.0
        self._last = self._begin = perf_counter()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap, or since the beginning, to `phase`."""
        now = perf_counter()
        self.add(phase, now - self._last)
        self._last = now

    def skip(self) -> None:
        """Exclude the time since the last lap from all phases; the total includes it."""
        self._last = perf_counter()

    def add(self, phase: str, seconds: float) -> None:
        """Add `seconds` to `phase`."""
        self._ms[phase] += 1000 * seconds

    def set(self, phase: str, seconds: float) -> None:
        """Replace what was measured for `phase`."""
        self._ms[phase] = 1000 * seconds

    def include(self, earlier: "Timings") -> None:
        """Add the timings of the init phase, without the pause between init and invoke."""
        for phase, ms in earlier._ms.items():
            self._ms[phase] += ms
            self._earlier += ms

    def finished(self) -> dict[str, float]:
        """All phases, rounded to 0.1 ms; `total` is this invocation and the init phase."""
        total = self._earlier + 1000 * (perf_counter() - self._begin)
        return {phase: round(ms, 1) for phase, ms in (self._ms | {"total": total}).items()}


def seconds_since_process_start() -> float:
    """Age of this process, to 10 ms (the kernel's clock tick); 0 without /proc.

    proc(5): field 22 of /proc/self/stat is the start time in ticks after boot.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        return max(0.0, now - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):  # not Linux
        return 0.0


class Report(NamedTuple):
    """Information about the invocation in every reply."""

    timings_ms: Mapping[str, float]
    cold_start: bool
    model: str | None
    origin: str | None = None
    """Where the model came from: `volume`, `cache`, `s3`, `hub` or `demo`."""

    def fields(self) -> dict[str, Any]:
        """The report as JSON fields."""
        return {
            "timings_ms": dict(self.timings_ms),
            "cold_start": self.cold_start,
            "model": self.model,
            "model_source": self.origin,
        }


class Counts:
    """Totals of an invocation, for the log line and the metrics."""

    def __init__(self) -> None:
        self.requests = self.errors = self.prompt_tokens = self.completion_tokens = 0

    def add(self, done: "list[Completion] | GPT2Error") -> None:
        """Count one request."""
        self.requests += 1
        if isinstance(done, GPT2Error):
            self.errors += 1
        else:
            self.prompt_tokens += sum(c.prompt_tokens for c in done)
            self.completion_tokens += sum(len(c.ids) for c in done)


def log_invoke(
    source: str, counts: Counts, error: BaseException | None, report: Report, context: Any
) -> None:
    """Write the line of an invocation.

    Unauthorized requests are not counted, and cancelled ones are no errors: otherwise anyone with
    the URL could fire the alarms that divide `Errors` by `Requests`, and roll back a deployment.
    """
    counted = int(error is not None and not isinstance(error, Unauthorized))
    failed = 0 if isinstance(error, Cancelled) else counted
    line: dict[str, Any] = {
        "level": "INFO",
        "message": "cold start" if report.cold_start else "invoke",
        "request_id": getattr(context, "aws_request_id", None),
        "error": type(error).__name__ if error else None,
        "model": report.model,
        "model_source": report.origin,
        "timings_ms": report.timings_ms,
        "FunctionName": getattr(context, "function_name", None) or "local",
        "Source": source,
        # A failed invocation counts as a request: alarms divide errors by requests.
        "Requests": max(counts.requests, counted),
        "Errors": max(counts.errors, failed),
        "PromptTokens": counts.prompt_tokens,
        "CompletionTokens": counts.completion_tokens,
        "ColdStarts": int(report.cold_start),
        "Duration": report.timings_ms["total"],
        "_aws": {
            "Timestamp": round(time.time() * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": NAMESPACE,
                    # The function's name separates stacks. Each further dimension would be a
                    # billed metric; CloudWatch Logs Insights can filter the lines by source.
                    "Dimensions": [["FunctionName"]],
                    "Metrics": [{"Name": name, "Unit": unit} for name, unit in _UNITS.items()],
                }
            ],
        },
    }
    _write(line)


def log_messages(errors: Mapping[str, GPT2Error]) -> None:
    """Write a line for each queue message that failed: its id and the type of the error.

    Without the field at fault, because the sender chooses the names of unknown fields.
    """
    for name, error in list(errors.items())[:MAX_ERRORS]:
        _write({"level": "WARNING", "type": type(error).__name__, "message_id": name})
    if len(errors) > MAX_ERRORS:
        _write({"level": "WARNING", "message": f"{len(errors) - MAX_ERRORS} more messages failed"})


def log_warning(error: GPT2Error) -> None:
    """Write a line about an error that the function can recover from."""
    _write({"level": "WARNING", "type": type(error).__name__, "message": error.message})


def log_error(error: BaseException, context: Any) -> None:
    """Write a line about an error; for an unexpected one only its type and stack, because the
    message may quote a prompt.
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
