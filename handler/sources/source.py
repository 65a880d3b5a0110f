"""The interface of event sources: event to job, and result to reply."""

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handler.jobs import Job
    from handler.settings import Settings
    from handler.telemetry import Report

MAX_PAYLOAD_BYTES = 6 * 1024 * 1024  # AWS Lambda Developer Guide, "Lambda quotas"


class Source:
    """An event and its source. The defaults are for services that treat any reply as success.

    For those, errors are raised, so that the service retries or reports the failure.
    """

    kind = "unknown"
    """Name of the source in log lines."""
    raises = True
    """Whether errors are raised instead of returned."""
    max_reply_bytes = MAX_PAYLOAD_BYTES
    """Size limit of the reply as the runtime posts it."""
    streams = False
    """Whether the reply can be streamed."""
    sent_at: float | None = None
    """Time of the request in seconds since the epoch, if the event has it."""

    def __init__(self, event: Any) -> None:
        self._event = event

    def connect(self, settings: "Settings", context: Any) -> None:
        """Decide whether the reply to this event can be streamed."""

    def timeout_s(self, settings: "Settings") -> float | None:  # noqa: ARG002
        """Seconds that the caller waits for a reply; None if there is no limit."""
        return None

    def parse(self, settings: "Settings") -> "Job":
        """The job that the event asks for.

        Raises:
            GPT2Error: the event is invalid. If `raises` is set, the message must not contain
                anything that a caller chose, because Lambda logs it.
        """
        raise NotImplementedError

    def reply(self, result: Any, report: "Report") -> Any:  # noqa: ARG002
        """The reply. `result` is the value of `Job.render`."""
        return result

    def fail(self, error: GPT2Error, report: "Report") -> Any:  # noqa: ARG002
        """The reply for an error, or raise the error."""
        raise error
