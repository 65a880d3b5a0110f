"""Large files start the state machine (in moto) unless its item reader does not support them."""

import gzip
import json
from typing import Any

import boto3
import pytest

from handler.app import Function
from handler.batch import state_machine
from handler.batch.lines import Line
from handler.batch.state_machine import MAX_ITEM_BYTES, can_read
from handler.errors import ResultsUnavailable, Unfinished
from handler.settings import Settings
from tests.conftest import DEMO
from tests.support.events import Context, load_event
from tests.support.s3_server import Bucket

pytestmark = pytest.mark.usefixtures("aws_settings")
STATES = {"StartAt": "Done", "States": {"Done": {"Type": "Pass", "End": True}}}
LINES = b"\n".join(b'{"prompt": "a", "max_new_tokens": 1}' for _ in range(40))


@pytest.fixture
def machine(bucket: Bucket) -> str:
    """The ARN of a new state machine that does nothing."""
    role = "arn:aws:iam::123456789012:role/states"
    client: Any = boto3.client("stepfunctions")
    made = client.create_state_machine(
        name=bucket.name, definition=json.dumps(STATES), roleArn=role
    )
    return str(made["stateMachineArn"])


@pytest.fixture
def function(bucket: Bucket, machine: str) -> Function:
    return Function(
        Settings(
            model_dir=str(DEMO),
            results=f"s3://{bucket.name}/results",
            state_machine=machine,
            max_object_bytes=1000,
        )
    )


def event_of(bucket: Bucket, key: str) -> dict[str, Any]:
    event = load_event("batch-s3-eventbridge")
    event["detail"]["bucket"]["name"] = bucket.name
    event["detail"]["object"] = {"key": key}
    return dict(event)


def start_execution(function: Function, bucket: Bucket, key: str = "a.jsonl") -> dict[str, Any]:
    (report,) = function.invoke(event_of(bucket, key), Context())["objects"]
    return dict(report)


def executions(machine: str) -> list[dict[str, Any]]:
    client: Any = boto3.client("stepfunctions")
    found = client.list_executions(stateMachineArn=machine)["executions"]
    return [client.describe_execution(executionArn=e["executionArn"]) for e in found]


def test_a_large_file_starts_the_state_machine_once_and_reports_the_results_location(
    function: Function, bucket: Bucket, machine: str
) -> None:
    bucket.put("a.jsonl", LINES)
    first, second = start_execution(function, bucket), start_execution(function, bucket)
    assert first == second
    assert first["status"] == "started"
    (execution,) = executions(machine)
    assert execution["name"] == first["execution"]
    given = json.loads(execution["input"])
    etag = bucket.client.head_object(Bucket=bucket.name, Key="a.jsonl")["ETag"].strip('"')
    assert given == {
        "bucket": bucket.name,
        "key": "a.jsonl",
        "etag": etag,
        "prefix": f"state-machine/a.jsonl.{etag}",
    }
    assert first["results"] == f"s3://{bucket.name}/{given['prefix']}/"


def test_starting_the_state_machine_does_not_open_the_model(
    function: Function, bucket: Bucket
) -> None:
    bucket.put("a.jsonl", LINES)
    function.settings = function.settings._replace(model_dir="/nowhere", model_dir_named=True)
    assert start_execution(function, bucket)["status"] == "started"


def test_a_file_with_a_checkpoint_is_not_scanned_again(
    function: Function, bucket: Bucket, machine: str
) -> None:
    bucket.put("a.jsonl", LINES)
    etag = bucket.client.head_object(Bucket=bucket.name, Key="a.jsonl")["ETag"].strip('"')
    bucket.put(f"results/a.jsonl.{etag}.results.jsonl.checkpoint", b"{}")
    assert start_execution(function, bucket)["status"] == "done"
    assert executions(machine) == []


def test_results_of_long_keys_fit_below_the_prefix(
    function: Function, bucket: Bucket, machine: str
) -> None:
    key = "ü" * 500 + ".jsonl"
    bucket.put(key, LINES)
    start_execution(function, bucket, key)
    (execution,) = executions(machine)
    prefix = json.loads(execution["input"])["prefix"]
    assert len(prefix.encode()) <= 1024 - len("/") - 36 - len("/SUCCEEDED_1000.json")


def test_a_failed_execution_is_restarted_with_another_name(
    function: Function, bucket: Bucket, machine: str
) -> None:
    bucket.put("a.jsonl", LINES)
    first = start_execution(function, bucket)["execution"]
    (execution,) = executions(machine)
    client: Any = boto3.client("stepfunctions")
    client.stop_execution(executionArn=execution["executionArn"])
    second = start_execution(function, bucket)["execution"]
    assert second == f"{first}-2"
    assert start_execution(function, bucket)["execution"] == second
    assert len(executions(machine)) == 2


def test_executions_of_a_failing_file_are_limited(
    function: Function, bucket: Bucket, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_machine, "MAX_EXECUTIONS", 3)
    bucket.put("a.jsonl", LINES)
    client: Any = boto3.client("stepfunctions")
    for _ in range(3):
        start_execution(function, bucket)
        for execution in executions(machine):
            client.stop_execution(executionArn=execution["executionArn"])
    with pytest.raises(ResultsUnavailable, match="3 executions of the state machine have failed"):
        start_execution(function, bucket)


def test_a_missing_state_machine_is_an_error(function: Function, bucket: Bucket) -> None:
    bucket.put("a.jsonl", LINES)
    gone = f"{function.settings.state_machine}-gone"
    function.settings = function.settings._replace(state_machine=gone)
    with pytest.raises(ResultsUnavailable, match="states:StartExecution"):
        start_execution(function, bucket)


@pytest.mark.parametrize(
    ("key", "content", "encoding"),
    [
        ("a.jsonl.gz", gzip.compress(LINES * 50, 0), ""),
        ("a.jsonl", gzip.compress(LINES * 50, 0), "gzip"),
        ("a.txt", b"A wolf\n" * 200, ""),
        ("a.jsonl", LINES + b"\n{bad", ""),
        ("a.jsonl", LINES + b"\n\n" + LINES, ""),
    ],
)
def test_files_that_the_item_reader_does_not_support_stay_with_the_function(
    key: str, content: bytes, encoding: str, function: Function, bucket: Bucket, machine: str
) -> None:
    bucket.put(key, content, ContentEncoding=encoding)
    assert start_execution(function, bucket, key)["status"] == "done"
    assert executions(machine) == []


@pytest.mark.parametrize(
    "content", [b"5", b"[]", b'"\xff"', b"", None, b'{"a": ' + b"[" * 100_000, b"\xef\xbb\xbf{}"]
)
def test_a_line_that_is_not_an_object_is_not_for_the_item_reader(content: bytes | None) -> None:
    assert not can_read([Line(1, b"{}", 3), Line(2, content, 9)], None)


def test_an_item_over_the_batch_limit_is_not_for_the_item_reader() -> None:
    text = json.dumps({"prompt": "a" * MAX_ITEM_BYTES}).encode()
    assert not can_read([Line(1, text, len(text))], None)


def test_scanning_a_file_ends_at_the_deadline() -> None:
    with pytest.raises(Unfinished):
        can_read([Line(1, b"{}", 3)], 0.0)
