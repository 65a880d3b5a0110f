"""Event sources: one module for each kind.

To add a source, write a module here with a function `recognize(event) -> Source | None`, and add a
line to `_MODULES`.
"""

from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.errors import UnsupportedEvent

if TYPE_CHECKING:
    from handler.sources.source import Source

SUPPORTED = (
    "direct invocations, API Gateway (REST, HTTP), Function URLs, ALB, EventBridge schedules, SQS,"
    " S3 ObjectCreated events (also from EventBridge), and Distributed Map batches"
)
# A key of the event, and the module that may recognize the event. The first match wins; other
# modules are not imported.
_MODULES = (
    ("requestContext", "http"),
    ("detail-type", "schedule"),
    ("detail-type", "s3"),
    ("Event", "s3"),
    ("Records", "sqs"),
    ("Records", "s3"),
    ("Items", "step_functions"),
)


def source_of(event: Any) -> "Source":
    """The source of an event.

    Raises:
        UnsupportedEvent: no source recognizes the event. This is always raised, because most
            services treat any reply as success and would delete what they have sent.
    """
    if isinstance(event, dict):
        for key, module in _MODULES:
            if key in event and (found := _load(module).recognize(event)):
                return found  # type: ignore[no-any-return]
    # EventBridge Pipes send the records of a queue as a list.
    module = "sqs" if isinstance(event, list) else "direct"
    found = _load(module).recognize(event)
    if found:
        return found  # type: ignore[no-any-return]
    raise UnsupportedEvent(
        f"unsupported event. Send `prompt` or `inputs`, or an event of: {SUPPORTED}"
    )


def _load(name: str) -> Any:
    # Like `import_module`, without importing importlib at a cold start.
    return __import__(f"handler.sources.{name}", fromlist=["recognize"])
