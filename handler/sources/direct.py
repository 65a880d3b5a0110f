"""Direct invocations: a request without an envelope, or one of `jobs.ACTIONS`."""

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.dialects import dialect_of, dialects, parse_request
from handler.dialects.request import EventStream
from handler.errors import BadRequest
from handler.jobs import ACTIONS, Generate, Job
from handler.sources.source import Source

if TYPE_CHECKING:
    from handler.settings import Settings
    from handler.telemetry import Report


def recognize(event: Any) -> "Direct | None":
    """The source of an event that is itself a request, or None for other events."""
    if not isinstance(event, dict):
        return None
    return Direct(event) if dialect_of(event) or not ACTIONS.keys().isdisjoint(event) else None


class Direct(Source):
    """A request without an envelope."""

    kind = "direct"
    raises = False

    def parse(self, settings: "Settings") -> Job:  # noqa: ARG002
        """See `Source`."""
        for action, job in ACTIONS.items():
            if action in self._event:
                if self._event != {action: True}:
                    raise BadRequest(
                        f'the event must be {{"{action}": true}} without other fields', param=action
                    )
                return job()
        return Generate(parse_request(self._event))

    def reply(self, result: Any, report: "Report") -> Any:  # noqa: ARG002
        """The result; an event stream as one string."""
        return "".join(result) if isinstance(result, EventStream) else result

    def fail(self, error: GPT2Error, report: "Report") -> Any:  # noqa: ARG002
        """The error in the request's dialect."""
        dialect = dialect_of(self._event) or next(dialects())
        return dialect.render_error(error)[1]
