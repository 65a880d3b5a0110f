"""Events of queues, buckets and state machines -> what they ask for. Pure.

Shapes: AWS Lambda Developer Guide ("Using Lambda with Amazon SQS", "… Amazon S3"), Amazon S3 User
Guide ("Event message structure", "Using EventBridge"), Amazon SNS Developer Guide ("Parsing message
formats"), AWS Step Functions Developer Guide ("ItemBatcher").
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gpt2core.errors import GPT2Error
from handler import dialects
from handler.dialects import Request, shown
from handler.errors import BadRequest, UnsupportedEvent

S3_FILES = (".jsonl", ".jsonl.gz", ".txt")
_IDS = ("id", "custom_id")


class S3Object(NamedTuple):
    """A file of prompts, as an event names it."""

    bucket: str
    key: str
    etag: str | None = None
    version: str | None = None


class Item(NamedTuple):
    """One of many requests: a line, or an item of a batch. `id` is what its caller calls it."""

    id: Any
    work: Request | GPT2Error


class Record(NamedTuple):
    """A message of a queue."""

    id: str
    work: Item | tuple[S3Object, ...] | GPT2Error


def parse_item(fields: Any, defaults: Mapping[str, Any] | None = None) -> Item:
    """One request in either dialect, with an `id` or `custom_id` of its own."""
    name = None
    try:
        if not isinstance(fields, dict):
            raise BadRequest(f"it is {shown(fields)}, not an object: send {dialects.EXAMPLE}")
        given = [fields[key] for key in _IDS if fields.get(key) is not None]
        if len(given) > 1:
            raise BadRequest("send either id or custom_id, not both", param="custom_id")
        for value in given:
            dialects.check_echo(value)
            name = value
        wanted = {**(defaults or {}), **fields}
        request = dialects.parse_request({k: v for k, v in wanted.items() if k not in _IDS})
    except GPT2Error as error:
        return Item(name, error)
    return Item(name, request._replace(has_id=name is not None, id=name))


def parse_json_item(text: str) -> Item:
    """`parse_item` of JSON."""
    try:
        return parse_item(_json(text))
    except GPT2Error as error:
        return Item(None, error)


def parse_records(records: Sequence[Any]) -> tuple[Record, ...]:
    """The messages that a queue hands over, what is wrong with one being its own affair.

    Raises:
        UnsupportedEvent: one has no id, so that nobody could say what became of it.
    """
    found = []
    for record in records:
        name = record.get("messageId") if isinstance(record, dict) else None
        if not isinstance(name, str) or not name:
            raise UnsupportedEvent("a record of the queue has no messageId")
        try:
            found.append(Record(name, _message(record.get("body"))))
        except GPT2Error as error:
            found.append(Record(name, error))
    return tuple(found)


def parse_batch(event: Mapping[str, Any]) -> tuple[Item, ...]:
    """The items of a Distributed Map's batch; what `BatchInput` holds goes for each of them.

    Raises:
        BadRequest: it is no batch.
    """
    items, defaults = event["Items"], event.get("BatchInput")
    if not isinstance(items, list):
        raise BadRequest(f"Items is {shown(items)}, not an array", param="Items")
    if defaults is not None and not isinstance(defaults, dict):
        raise BadRequest(f"BatchInput is {shown(defaults)}, not an object", param="BatchInput")
    return tuple(parse_item(item, defaults) for item in items)


def queue_of(event: Mapping[str, Any]) -> str:
    """The ARN of the queue whose messages these are; "" if they are none."""
    records = event.get("Records")
    if not isinstance(records, list) or not records or not isinstance(records[0], dict):
        return ""
    from_queue = records[0].get("eventSource") == "aws:sqs"
    return str(records[0].get("eventSourceARN") or "?") if from_queue else ""


def is_s3(event: Mapping[str, Any]) -> bool:
    """Whether S3 says something of its objects, itself or by EventBridge."""
    records = event.get("Records")
    if isinstance(records, list) and records and isinstance(records[0], dict):
        return records[0].get("eventSource") == "aws:s3"
    return event.get("source") == "aws.s3" or event.get("Event") == "s3:TestEvent"


def parse_objects(event: Mapping[str, Any]) -> tuple[S3Object, ...]:
    """The objects that S3 says were created; none of its test of the connection.

    Raises:
        UnsupportedEvent: something else became of them, or the event is not complete.
    """
    if event.get("Event") == "s3:TestEvent":
        return ()
    try:
        if "Records" in event:
            return tuple(map(_notified, event["Records"]))
        kind, detail = event.get("detail-type"), event["detail"]
        if kind != "Object Created":
            raise _not_created(kind)
        found = detail["object"]
        return (
            S3Object(
                _text(detail["bucket"]["name"]),
                _text(found["key"]),  # as it is: only notifications encode it
                found.get("etag"),
                found.get("version-id"),
            ),
        )
    except (KeyError, TypeError, AttributeError):
        raise UnsupportedEvent("the event of S3 names no bucket or no object") from None


def _notified(record: Any) -> S3Object:
    from urllib.parse import unquote_plus

    if not str(record.get("eventName")).startswith("ObjectCreated:"):
        raise _not_created(record.get("eventName"))
    bucket, found = record["s3"]["bucket"]["name"], record["s3"]["object"]
    key = unquote_plus(_text(found["key"]))
    return S3Object(_text(bucket), key, found.get("eTag"), found.get("versionId"))


def _not_created(kind: Any) -> UnsupportedEvent:
    return UnsupportedEvent(
        f"events of S3 of the kind {shown(kind)} are not served: subscribe to created objects only"
    )


def _message(body: Any) -> Item | tuple[S3Object, ...]:
    """A message's body: a request, or what S3 or SNS has wrapped."""
    if not isinstance(body, str):
        raise BadRequest(f"the body is {shown(body)}, not text", param="body")
    fields = _json(body)
    if isinstance(fields, dict) and fields.get("Type") == "Notification" and "TopicArn" in fields:
        fields = _json(_text(fields.get("Message")))
    if isinstance(fields, dict) and is_s3(fields):
        return parse_objects(fields)
    item = parse_item(fields)
    if isinstance(item.work, GPT2Error):
        raise item.work
    return item


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise BadRequest("it is nested too deeply") from None
    except ValueError as error:
        where = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadRequest(f"it is not JSON{where}") from None
