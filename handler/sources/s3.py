"""S3 ObjectCreated events, from S3 notifications and from EventBridge.

Shapes: Amazon S3 User Guide ("Event message structure", "Using EventBridge").
"""

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler.errors import UnsupportedEvent
from handler.items import S3Object
from handler.jobs import Job, Objects
from handler.sources.source import Source

if TYPE_CHECKING:
    from handler.settings import Settings


def recognize(event: dict[str, Any]) -> "S3 | None":
    """The source of an S3 notification or of an S3 event from EventBridge, else None."""
    if "Records" in event:
        records = event["Records"]
        if not isinstance(records, list) or not records:
            return None
        notified = all(isinstance(r, dict) and r.get("eventSource") == "aws:s3" for r in records)
        return S3(event) if notified else None
    by_eventbridge = event.get("source") == "aws.s3" and "detail-type" in event
    return S3(event) if by_eventbridge or event.get("Event") == "s3:TestEvent" else None


class S3(Source):
    """One or more created objects. The reply is not used."""

    kind = "s3"

    def parse(self, settings: "Settings") -> Job:  # noqa: ARG002
        """See `objects`."""
        return Objects(self.objects())

    def objects(self) -> tuple[S3Object | GPT2Error, ...]:
        """The created objects; none in S3's test event.

        If some of several records are invalid, their errors are part of the result.

        Raises:
            UnsupportedEvent: no record is about a created object, or the event is incomplete.
        """
        event = self._event
        try:
            if "Records" in event:
                found = tuple(map(_notified, event["Records"]))
                errors = [one for one in found if isinstance(one, GPT2Error)]
                if len(errors) == len(found):
                    raise errors[0]
                return found
            if event.get("Event") == "s3:TestEvent":
                return ()
            if event["detail-type"] != "Object Created":
                raise _not_created()
            detail = event["detail"]
            created = detail["object"]
            return (
                S3Object(
                    _text(detail["bucket"]["name"]),
                    _text(created["key"]),  # not URL-encoded, unlike in notifications
                    _optional_text(created.get("etag")),
                    _optional_text(created.get("version-id")),
                ),
            )
        except (KeyError, TypeError, AttributeError):
            raise _incomplete() from None


def _notified(record: dict[str, Any]) -> S3Object | UnsupportedEvent:
    from urllib.parse import unquote_plus

    if not str(record.get("eventName")).startswith("ObjectCreated:"):
        return _not_created()
    try:
        found = record["s3"]["object"]
        return S3Object(
            _text(record["s3"]["bucket"]["name"]),
            unquote_plus(_text(found["key"])),
            _optional_text(found.get("eTag")),
            _optional_text(found.get("versionId")),
        )
    except (KeyError, TypeError, AttributeError):
        return _incomplete()


def _incomplete() -> UnsupportedEvent:
    return UnsupportedEvent("the S3 event has no bucket name or no object key")


def _not_created() -> UnsupportedEvent:
    return UnsupportedEvent(
        "only ObjectCreated events of S3 are supported: subscribe to s3:ObjectCreated:* only"
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value)
