"""Events of created S3 objects, from notifications and EventBridge."""

from typing import Any

import pytest

from gpt2core.errors import GPT2Error
from handler.errors import UnsupportedEvent
from handler.items import S3Object
from handler.jobs import Objects
from handler.settings import Settings
from handler.sources import source_of
from tests.support.events import load_event

THE_FOX = S3Object("gpt2-prompts", "tales/of the fox.jsonl", "d41d8cd98f00b204e9800998ecf8427e")


def objects_of(event: Any) -> tuple[S3Object | GPT2Error, ...]:
    job = source_of(event).parse(Settings())
    assert isinstance(job, Objects)
    return job.objects


@pytest.mark.parametrize("name", ["batch-s3", "batch-s3-eventbridge"])
def test_the_key_of_a_created_object_is_decoded(name: str) -> None:
    assert objects_of(load_event(name)) == (THE_FOX,)


def test_only_notifications_encode_their_keys() -> None:
    event = load_event("batch-s3")
    event["Records"][0]["s3"]["object"]["key"] = "a%2Bb+c%C3%A4.txt"
    assert objects_of(event)[0].key == "a+b cä.txt"
    event = load_event("batch-s3-eventbridge")
    event["detail"]["object"]["key"] = "a%2Bb+c.txt"
    assert objects_of(event)[0].key == "a%2Bb+c.txt"


def test_an_invalid_record_does_not_affect_the_others() -> None:
    event = load_event("batch-s3")
    removed = event["Records"][0] | {"eventName": "ObjectRemoved:Delete"}
    event["Records"] = [removed, {"eventSource": "aws:s3"}, *event["Records"]]
    first, second, third = objects_of(event)
    assert isinstance(first, UnsupportedEvent)
    assert isinstance(second, UnsupportedEvent)
    assert third == THE_FOX


def test_s3_test_events_have_no_objects() -> None:
    assert objects_of(load_event("batch-s3-test")) == ()


@pytest.mark.parametrize("kind", ["ObjectRemoved:Delete", "ObjectTagging:Put", None])
def test_other_object_events_are_not_supported(kind: str | None) -> None:
    event = load_event("batch-s3")
    event["Records"][0]["eventName"] = kind
    with pytest.raises(UnsupportedEvent, match="ObjectCreated"):
        objects_of(event)


@pytest.mark.parametrize(
    "event",
    [
        {"source": "aws.s3", "detail-type": "Object Created", "detail": {}},
        {"source": "aws.s3", "detail-type": "Object Created"},
        {"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {}}]},
        {"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put"}]},
    ],
)
def test_an_event_without_an_object_is_rejected(event: Any) -> None:
    with pytest.raises(UnsupportedEvent, match="has no bucket"):
        objects_of(event)
