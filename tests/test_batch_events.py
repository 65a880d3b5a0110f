"""What queues, buckets and state machines send, and what it asks for."""

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2core.errors import GPT2Error
from handler import events
from handler.batch_events import Item, S3Object
from handler.dialects import Request
from handler.errors import BadRequest, UnsupportedEvent, UnsupportedObject
from handler.events import Job, Source
from handler.lines import MAX_LINE_BYTES, RANGE_BYTES, Line, _gunzipped, lines_of
from tests.conftest import load_event


def parse(event: Any) -> Job:
    return events.parse(event, events.source_of(event))


def message(body: Any, name: str = "m") -> dict[str, Any]:
    text = body if isinstance(body, str) else json.dumps(body)
    return {"messageId": name, "body": text, "eventSource": "aws:sqs", "eventSourceARN": "arn:q"}


def work_of(body: Any) -> Any:
    (record,) = parse({"Records": [message(body)]}).records
    return record.work


def test_messages_in_both_dialects_are_requests() -> None:
    first, second = parse(load_event("batch-sqs")).records
    assert isinstance(first.work, Item)
    assert isinstance(second.work, Item)
    assert [r.work.work.dialect for r in (first, second)] == ["native", "huggingface"]  # type: ignore[union-attr]


def test_a_fifo_queue_is_recognized_by_its_name() -> None:
    assert events.source_of(load_event("batch-sqs")) == Source("sqs")
    assert events.source_of(load_event("batch-sqs-fifo")) == Source("sqs", fifo=True)


def test_what_sns_wraps_is_unwrapped() -> None:
    (record,) = parse(load_event("batch-sqs-sns")).records
    assert isinstance(record.work, Item)
    assert record.work.work.prompts == ("Once",)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "5", "null", '{"prompt": 5}', '{"prompt": "a", "x": 1}', '{"prompt": NaN}',
     "[" * 100_000, '{"prompt": "a", "id": "b", "custom_id": "c"}', '{"warmup": true}'],
)  # fmt: skip
def test_a_message_that_is_no_request_is_an_error_of_its_own(body: str) -> None:
    assert isinstance(work_of(body), BadRequest)
    records = [message(body, "bad"), message({"prompt": "a"}, "good")]
    assert isinstance(parse({"Records": records}).records[1].work, Item)


def test_a_message_without_an_id_fails_the_whole_batch() -> None:
    with pytest.raises(UnsupportedEvent, match="messageId"):
        parse({"Records": [message({"prompt": "a"}), {"eventSource": "aws:sqs", "body": "{}"}]})


THE_FOX = S3Object("gpt2-prompts", "tales/of the fox.jsonl", "d41d8cd98f00b204e9800998ecf8427e")


@pytest.mark.parametrize("name", ["batch-s3", "batch-s3-eventbridge"])
def test_a_created_object_is_found_under_its_own_name(name: str) -> None:
    assert parse(load_event(name)).objects == (THE_FOX,)


def test_a_notification_within_a_message_is_an_object() -> None:
    assert work_of(load_event("batch-s3")) == (THE_FOX,)
    assert work_of(load_event("batch-s3-eventbridge")) == (THE_FOX,)
    assert work_of(
        {"Type": "Notification", "TopicArn": "arn", "Message": json.dumps(load_event("batch-s3"))}
    ) == (THE_FOX,)


def test_only_notifications_encode_their_keys() -> None:
    event = load_event("batch-s3")
    event["Records"][0]["s3"]["object"]["key"] = "a%2Bb+c%C3%A4.txt"
    assert parse(event).objects[0].key == "a+b cä.txt"
    event = load_event("batch-s3-eventbridge")
    event["detail"]["object"]["key"] = "a%2Bb+c.txt"
    assert parse(event).objects[0].key == "a%2Bb+c.txt"


def test_the_test_of_a_connection_asks_for_nothing() -> None:
    assert parse(load_event("batch-s3-test")).objects == ()
    assert work_of(load_event("batch-s3-test")) == ()


@pytest.mark.parametrize("kind", ["ObjectRemoved:Delete", "ObjectTagging:Put", None])
def test_what_else_becomes_of_objects_is_not_served(kind: str | None) -> None:
    event = load_event("batch-s3")
    event["Records"][0]["eventName"] = kind
    with pytest.raises(UnsupportedEvent, match="created objects only"):
        parse(event)
    assert isinstance(work_of(event), UnsupportedEvent)


def test_an_event_of_s3_that_names_no_object_is_refused() -> None:
    for event in (
        {"source": "aws.s3", "detail-type": "Object Created", "detail": {}},
        {"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {}}]},
    ):
        with pytest.raises(UnsupportedEvent, match="names no"):
            parse(event)


def test_items_take_what_the_batch_says_for_all_and_keep_what_is_theirs() -> None:
    event = {"Items": [{"prompt": "a", "id": 0}, {"prompt": "b", "max_new_tokens": 9}],
             "BatchInput": {"max_new_tokens": 3}}  # fmt: skip
    first, second = parse(event).items
    assert (first.id, second.id) == (0, None)
    requests = [item.work for item in (first, second)]
    assert all(isinstance(request, Request) for request in requests)
    assert [request.max_new_tokens for request in requests] == [3, 9]  # type: ignore[union-attr]


def test_a_bad_item_keeps_the_name_that_it_was_given() -> None:
    (item,) = parse({"Items": [{"prompt": 5, "custom_id": "x"}]}).items
    assert item.id == "x"
    assert isinstance(item.work, GPT2Error)


@pytest.mark.parametrize("event", [{"Items": 5}, {"Items": [], "BatchInput": 5}])
def test_a_batch_that_is_none_is_refused(event: Any) -> None:
    with pytest.raises(BadRequest):
        parse(event)


def read_lines(content: bytes, is_gzip: bool = False, after: int = 0) -> list[Line]:
    """All lines; or those behind the first `after`, read from where they begin."""

    def lines(number: int, position: int) -> list[Line]:
        return list(lines_of(lambda a, b: content[a:b], len(content), is_gzip, number, position))

    every = lines(0, 0)
    return lines(after, every[after - 1].end) if after else every


@given(st.lists(st.binary(max_size=40), max_size=20), st.booleans(), st.integers(1, 50))
def test_lines_are_those_of_the_file_wherever_ranges_end(
    parts: list[bytes], is_gzip: bool, size: int
) -> None:
    content = b"\n".join(part.replace(b"\n", b"") for part in parts)
    expected = content.split(b"\n")
    expected = expected[:-1] if not expected[-1] else expected
    data = gzip.compress(content) if is_gzip else content
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("handler.lines.RANGE_BYTES", size)
        found = read_lines(data, is_gzip)
        assert [line.content for line in found] == [part.removesuffix(b"\r") for part in expected]
        assert [line.number for line in found] == list(range(1, len(found) + 1))
        for after in range(1, len(found)):
            assert read_lines(data, is_gzip, after) == found[after:]


def test_a_line_that_is_too_long_is_not_kept() -> None:
    content = b"a\n" + b"x" * (2 * MAX_LINE_BYTES) + b"\nb\n" + b"y" * (MAX_LINE_BYTES + 1)
    assert [line.content for line in read_lines(content)] == [b"a", None, b"b", None]


def test_gzip_files_in_a_row_are_one_file() -> None:
    data = gzip.compress(b"a\nb") + gzip.compress(b"c\n")
    assert [line.content for line in read_lines(data, True)] == [b"a", b"bc"]


def test_what_gzip_unpacks_comes_in_small_pieces() -> None:
    data = gzip.compress(b"x" * (40 * RANGE_BYTES))
    pieces = list(_gunzipped(lambda a, b: data[a:b], len(data)))
    assert max(map(len, pieces)) <= RANGE_BYTES
    assert sum(map(len, pieces)) == 40 * RANGE_BYTES


@pytest.mark.parametrize(
    "data", [b"not gzip", gzip.compress(b"a" * 999)[:-9], gzip.compress(b"a")[:5]]
)
def test_what_is_no_gzip_or_only_a_part_of_one_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedObject, match="gzip"):
        read_lines(data, True)
