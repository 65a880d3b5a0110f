"""Parsing of queue messages."""

import json
from typing import Any

import pytest

from handler.dialects.huggingface import DIALECT as HUGGING_FACE
from handler.dialects.native import DIALECT as NATIVE
from handler.dialects.request import Request
from handler.errors import BadRequest, UnsupportedEvent
from handler.items import Item, S3Object
from handler.jobs import Messages
from handler.settings import Settings
from handler.sources import source_of
from tests.support.events import load_event, message, queue_event

THE_FOX = S3Object("gpt2-prompts", "tales/of the fox.jsonl", "d41d8cd98f00b204e9800998ecf8427e")


def messages_of(event: Any) -> Messages:
    job = source_of(event).parse(Settings())
    assert isinstance(job, Messages)
    return job


def content_of(body: Any) -> Any:
    (record,) = messages_of(queue_event(body)).records
    return record.content


def request_of(body: Any) -> Request:
    item = content_of(body)
    assert isinstance(item, Item)
    assert isinstance(item.request, Request)
    return item.request


def test_messages_in_both_dialects_are_requests() -> None:
    first, second = (record["body"] for record in load_event("batch-sqs")["Records"])
    assert request_of(first).dialect is NATIVE
    assert request_of(second).dialect is HUGGING_FACE


def test_a_fifo_queue_is_recognized_by_its_name() -> None:
    assert [messages_of(load_event(f"batch-sqs{x}")).fifo for x in ("", "-fifo")] == [False, True]


def test_pipes_send_the_records_of_a_queue_as_a_list() -> None:
    records = load_event("batch-sqs")["Records"]
    assert messages_of(records).records == messages_of({"Records": records}).records


def test_sns_notifications_are_unwrapped() -> None:
    assert request_of(load_event("batch-sqs-sns")["Records"][0]["body"]).prompts == ("Once",)


@pytest.mark.parametrize("wrapped", [None, 5, {}])
def test_a_notification_without_a_message_fails_alone(wrapped: Any) -> None:
    body = {"Type": "Notification", "TopicArn": "arn", "Message": wrapped}
    assert isinstance(content_of(body), BadRequest)


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "5", "null", '{"prompt": 5}', '{"prompt": "a", "x": 1}', '{"prompt": NaN}',
     "[" * 100_000, '{"prompt": "a", "id": "b", "custom_id": "c"}', '{"warmup": true}'],
)  # fmt: skip
def test_an_invalid_message_fails_alone(body: str) -> None:
    assert isinstance(content_of(body), BadRequest)
    _, good = messages_of(queue_event(body, {"prompt": "a"})).records
    assert isinstance(good.content, Item)


@pytest.mark.parametrize("name", [None, "", 5])
def test_a_message_without_an_id_fails_the_whole_batch(name: Any) -> None:
    records = [message({"prompt": "a"}), message({"prompt": "b"}) | {"messageId": name}]
    with pytest.raises(UnsupportedEvent, match="messageId"):
        messages_of({"Records": records})


def test_an_s3_event_in_a_message_is_an_object() -> None:
    assert content_of(load_event("batch-s3")) == (THE_FOX,)
    assert content_of(load_event("batch-s3-eventbridge")) == (THE_FOX,)
    assert content_of(load_event("batch-s3-test")) == ()
    wrapped = json.dumps(load_event("batch-s3"))
    assert content_of({"Type": "Notification", "TopicArn": "arn", "Message": wrapped}) == (THE_FOX,)


def test_an_unsupported_s3_event_in_a_message_fails_alone() -> None:
    event = load_event("batch-s3")
    event["Records"][0]["eventName"] = "ObjectRemoved:Delete"
    assert isinstance(content_of(event), UnsupportedEvent)
