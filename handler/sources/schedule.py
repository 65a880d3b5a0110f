"""EventBridge schedules (rules and Scheduler), which keep the function warm.

Shape: Amazon EventBridge User Guide, "Creating a scheduled rule".
"""

from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.jobs import Job, WarmUp
from handler.sources.source import Source

if TYPE_CHECKING:
    from handler.settings import Settings


def recognize(event: dict[str, Any]) -> "Schedule | None":
    """The source of a scheduled event, or None for other events."""
    scheduled = event.get("detail-type") == "Scheduled Event"
    return (
        Schedule(event)
        if scheduled and event.get("source") in ("aws.events", "aws.scheduler")
        else None
    )


class Schedule(Source):
    """A scheduled event."""

    kind = "schedule"

    def parse(self, settings: "Settings") -> Job:  # noqa: ARG002
        """A warm-up."""
        return WarmUp()
