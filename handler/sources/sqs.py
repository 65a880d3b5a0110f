"""SQS messages, from Lambda's event source mapping or EventBridge Pipes.

Shapes: AWS Lambda Developer Guide ("Using Lambda with Amazon SQS"), Amazon SNS Developer Guide
("Parsing message formats").
"""

from collections.abc import Sequence

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.dialects.request import parse_json, short_repr
from handler.errors import BadRequest, UnsupportedEvent
from handler.items import Item, Record, S3Object, parse_item
from handler.jobs import Job, Messages
from handler.sources import s3
from handler.sources.source import Source

if TYPE_CHECKING:
    from handler.settings import Settings
    from handler.telemetry import Report


def recognize(event: Any) -> "Sqs | None":
    """The source of SQS messages, or None if there are other records."""
    records = event if isinstance(event, list) else event["Records"]
    if not isinstance(records, list) or not records:
        return None
    messages = all(isinstance(r, dict) and r.get("eventSource") == "aws:sqs" for r in records)
    return Sqs(records) if messages else None


class Sqs(Source):
    """A batch of messages. SQS deletes those that the reply does not list as failed."""

    kind = "sqs"

    def parse(self, settings: "Settings") -> Job:  # noqa: ARG002
        """The messages. An invalid message does not affect the others.

        Raises:
            UnsupportedEvent: a record has no messageId, so its failure could not be reported.
        """
        fifo = any(str(r.get("eventSourceARN")).endswith(".fifo") for r in self._event)
        return Messages(tuple(map(_record, self._event)), fifo)

    def reply(self, result: Sequence[str], report: "Report") -> dict[str, Any]:  # noqa: ARG002
        """The partial batch response: lists the messages that failed."""
        return {"batchItemFailures": [{"itemIdentifier": name} for name in result]}


def _record(record: dict[str, Any]) -> Record:
    name = record.get("messageId")
    if not isinstance(name, str) or not name:
        raise UnsupportedEvent("an SQS record has no messageId")
    attributes = record.get("attributes")
    group = attributes.get("MessageGroupId") if isinstance(attributes, dict) else None
    group = group if isinstance(group, str) else ""
    try:
        content = _message(record.get("body"))
    except GPT2Error as error:
        return Record(name, error, group=group)
    if isinstance(content, Item) and isinstance(content.request, GPT2Error):
        return Record(name, content.request, content.id, group)
    return Record(name, content, group=group)


def _message(body: Any) -> Item | tuple[S3Object | GPT2Error, ...]:
    """The content of a message: a request, an S3 event, or either in an SNS notification."""
    if not isinstance(body, str):
        raise BadRequest(f"the body is {short_repr(body)}, not a string", param="body")
    fields = parse_json(body, "the body", "body")
    if isinstance(fields, dict) and fields.get("Type") == "Notification" and "TopicArn" in fields:
        wrapped = fields.get("Message")
        if not isinstance(wrapped, str):
            raise BadRequest("the notification has no Message", param="Message")
        fields = parse_json(wrapped, "the notification's Message", "Message")
    if isinstance(fields, dict) and (event := s3.recognize(fields)):
        return event.objects()
    return parse_item(fields)
