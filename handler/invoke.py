"""`Invoke`: deadline, timings and log fields of one invocation."""

from time import monotonic, time

from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.telemetry import Counts, Report, Timings

if TYPE_CHECKING:
    from handler.app import Function
    from handler.sources.source import Source

# Time reserved for the last token and the reply before Lambda stops the function.
REPLY_MARGIN_S = 0.25
# The same before a gateway's timeout, with its network latency.
HTTP_MARGIN_S = 0.75


class Invoke:
    """Deadline, timings and log fields of one invocation."""

    def __init__(self, function: "Function", context: Any) -> None:
        self.context = context
        remaining = getattr(context, "get_remaining_time_in_millis", None)
        self.deadline = monotonic() + remaining() / 1000 - REPLY_MARGIN_S if remaining else None
        """`time.monotonic()` seconds at which work must end; None without a context."""
        self.reply_by = self.deadline
        """The same for the reply: the earlier of `deadline` and the caller's timeout."""
        self.timings = Timings()
        self.counts = Counts()
        self.kind = "unknown"
        self.error: BaseException | None = None
        self.reported: Report | None = None
        """The report in the reply."""
        self.is_streaming = False
        """Whether the reply continues after `Function.invoke` returns."""
        self._function = function
        self._is_first, function.is_first_invoke = function.is_first_invoke, False
        if self._is_first and function.init_timings:
            self.timings.include(function.init_timings)
        self._was_open = function.model.engine is not None

    def set_source(self, source: "Source") -> None:
        """Set the kind of source and the caller's timeout."""
        self.kind = source.kind
        timeout = source.timeout_s(self._function.settings)
        if timeout is None:
            return
        # The gateway's timeout starts when it receives the request, before a cold start. Without a
        # usable time in the event (an old one is sent again), it counts from the start of this
        # invocation, or of the init phase if it is the first.
        waited = time() - source.sent_at if source.sent_at is not None else -1
        if not 0 <= waited < timeout:
            waited = self.timings.finished()["total"] / 1000
        limit = monotonic() + timeout - waited - HTTP_MARGIN_S
        self.reply_by = limit if self.deadline is None else min(self.deadline, limit)

    def report(self) -> Report:
        """The report up to now."""
        model = self._function.model
        opened = not self._was_open and model.engine is not None
        name, origin = model.source[1:] if model.source else (None, None)
        self.reported = Report(self.timings.finished(), self._is_first or opened, name, origin)
        return self.reported
