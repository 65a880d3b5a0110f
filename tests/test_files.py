"""Files of prompts in S3, and the files of results that come of them; moto's S3 over HTTP."""

import gzip
import json
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from gpt2core import Engine
from handler import app, jsonl, result_file
from handler.app import Function
from handler.errors import ObjectUnavailable, Unfinished, UnsupportedObject
from handler.results import Results
from handler.settings import Settings
from tests.conftest import DEMO, load_event
from tests.emulator import emulator, emulator_path
from tests.s3_server import CREDENTIALS, Bucket
from tests.test_batch import Clock
from tests.test_queue import Context, content_of, failed, records

RIE = emulator_path()
pytestmark = pytest.mark.usefixtures("aws_settings")
MB = 1024 * 1024


@pytest.fixture
def function(bucket: Bucket) -> Function:
    return Function(Settings(model_dir=str(DEMO), results=f"s3://{bucket.name}/results"))


def put(bucket: Bucket, key: str, content: bytes) -> dict[str, Any]:
    """Upload a file; returns the notification about it."""
    bucket.put(key, content)
    event = load_event("batch-s3")
    s3 = event["Records"][0]["s3"]
    s3["bucket"]["name"] = bucket.name
    head = bucket.client.head_object(Bucket=bucket.name, Key=key)
    s3["object"] = {"key": key.replace(" ", "+"), "eTag": head["ETag"].strip('"')}
    return dict(event)


def results(bucket: Bucket) -> list[dict[str, Any]]:
    """The lines of the only file of results."""
    found = {k: v for k, v in content_of(bucket).items() if k.startswith("results/")}
    (content,) = found.values()
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.decode().split("\n")[:-1]]


def line(i: int) -> bytes:
    fields = {"prompt": f"There was a king {i % 20}", "max_new_tokens": 1 + i % 3, "id": i}
    return json.dumps(fields).encode()


def test_every_line_has_its_result_under_the_name_of_the_file(
    function: Function, bucket: Bucket, demo: Engine
) -> None:
    event = put(bucket, "some tales/a b.jsonl", b"\n".join(map(line, range(30))) + b"\n")
    (done,) = function.invoke(event, Context())["objects"]
    etag = event["Records"][0]["s3"]["object"]["eTag"]
    key = f"results/some tales/a b.jsonl.{etag}.results.jsonl"
    assert done["results"] == f"s3://{bucket.name}/{key}"
    assert (done["status"], done["lines"], done["errors"]) == ("done", 30, 0)
    found = results(bucket)
    assert [result["line"] for result in found] == list(range(1, 31))
    assert [result["id"] for result in found] == list(range(30))
    for i, result in enumerate(found):
        alone = demo.generate(f"There was a king {i % 20}", 1 + i % 3)
        assert (result["generated_text"], result["finish_reason"]) == (alone.text, "length")


def test_eventbridge_says_the_same(function: Function, bucket: Bucket) -> None:
    put(bucket, "a+b c.jsonl", line(1))
    event = load_event("batch-s3-eventbridge")
    event["detail"]["bucket"]["name"] = bucket.name
    event["detail"]["object"] = {"key": "a+b c.jsonl"}
    function.invoke(event, Context())
    assert len(results(bucket)) == 1


def test_gzip_and_plain_text_are_read(function: Function, bucket: Bucket, demo: Engine) -> None:
    function.invoke(put(bucket, "a.jsonl.gz", gzip.compress(line(1) + b"\n" + line(2))), Context())
    assert [result["id"] for result in results(bucket)] == [1, 2]
    bucket.client.delete_objects(
        Bucket=bucket.name, Delete={"Objects": [{"Key": k} for k in content_of(bucket)]}
    )
    text = "\ufeffThe wolf\r\n\r\nThe “fox”\r\n".encode()
    function.invoke(put(bucket, "a.txt", text), Context())
    wolf, empty, fox = results(bucket)
    assert wolf["generated_text"] == demo.generate("The wolf").text
    assert fox["generated_text"] == demo.generate("The “fox”").text
    assert empty["error"]["message"] == "the line is empty"


def test_an_empty_file_has_empty_results(function: Function, bucket: Bucket) -> None:
    function.invoke(put(bucket, "a.jsonl", b""), Context())
    assert results(bucket) == []


def test_a_file_that_is_done_is_not_done_again(function: Function, bucket: Bucket) -> None:
    event = put(bucket, "a.jsonl", line(1))
    first = function.invoke(event, Context())["objects"][0]
    second = function.invoke(event, Context())["objects"][0]
    assert (first["status"], second["status"]) == ("done", "unchanged")


@pytest.mark.parametrize(
    ("key", "words"),
    [("a.csv", r"none of \.jsonl"), ("results/a.jsonl", "lies where results go")],
)
def test_what_holds_no_prompts_is_refused(
    function: Function, bucket: Bucket, key: str, words: str
) -> None:
    with pytest.raises(UnsupportedObject, match=words):
        function.invoke(put(bucket, key, line(1)), Context())


def test_a_file_that_has_changed_or_gone_since_its_event_is_an_error(
    function: Function, bucket: Bucket
) -> None:
    event = put(bucket, "a.jsonl", line(1))
    bucket.put("a.jsonl", line(2))
    with pytest.raises(ObjectUnavailable, match="has changed"):
        function.invoke(event, Context())
    bucket.delete("a.jsonl")
    with pytest.raises(ObjectUnavailable, match="is not there any more"):
        function.invoke(event, Context())


def test_a_file_within_a_message_stays_in_the_queue_until_it_is_done(
    function: Function, bucket: Bucket
) -> None:
    event = put(bucket, "a.jsonl", line(1))
    function.invoke({"warmup": True}, Context())
    assert failed(function.invoke(records(event), Context(0))) == ["m0"]
    assert failed(function.invoke(records(event), Context())) == []
    assert len(results(bucket)) == 1


def test_where_the_time_runs_out_a_retry_goes_on(
    function: Function, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 1.0)  # a pass over the weights takes a second, nothing else any time
    for module in (app, jsonl):
        monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    event = put(bucket, "a.jsonl.gz", gzip.compress(b"\n".join(map(line, range(400)))))
    done = 0
    for _ in range(2):
        with pytest.raises(Unfinished, match="is not complete") as caught:
            function.invoke(event, Context(10_000))
        (left,) = (key for key in content_of(bucket) if key.startswith("results/"))
        assert left.endswith(".checkpoint")
        lines = int(caught.value.message.partition("complete: ")[2].split()[0])
        assert lines > done
        done = lines
    assert function.invoke(event, Context(60_000))["objects"][0]["lines"] == 400
    assert [result["id"] for result in results(bucket)] == list(range(400))


def big(i: int) -> bytes:
    return json.dumps({"prompt": "a", "max_new_tokens": 1, "id": f"{i}:" + "x" * 600_000}).encode()


def test_large_results_are_written_in_parts_and_seen_when_they_are_complete(
    function: Function, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = put(bucket, "a.jsonl", b"\n".join(map(big, range(20))))
    monkeypatch.setattr(result_file, "PART_BYTES", 5 * MB)
    publish = result_file.Output.publish

    def stop(self: Any) -> None:
        raise Unfinished("stopped")

    monkeypatch.setattr(result_file.Output, "publish", stop)
    with pytest.raises(Unfinished):
        function.invoke(event, Context())
    (left,) = (key for key in content_of(bucket) if key.startswith("results/"))
    assert left.endswith(".checkpoint")
    monkeypatch.setattr(result_file.Output, "publish", publish)
    function.invoke(event, Context())
    assert [result["id"].split(":")[0] for result in results(bucket)] == [str(i) for i in range(20)]


def test_an_upload_that_was_aborted_begins_again(
    function: Function, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = put(bucket, "a.jsonl", b"\n".join(map(big, range(9))))  # all within the first part
    monkeypatch.setattr(result_file, "PART_BYTES", 5 * MB)
    with monkeypatch.context() as patch:
        # What S3 says of an upload that is over, NoSuchUpload; moto breaks down instead.
        patch.setattr(Results, "end_parts", lambda *_: False)
        with pytest.raises(Unfinished, match="from the beginning"):
            function.invoke(event, Context())
    assert not [key for key in content_of(bucket) if key.startswith("results/")]
    function.invoke(event, Context())
    assert len(results(bucket)) == 9


def test_an_upload_that_somebody_else_has_published_is_done(
    function: Function, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = put(bucket, "a.jsonl", b"\n".join(map(big, range(9))))
    monkeypatch.setattr(result_file, "PART_BYTES", 5 * MB)
    end_parts = Results.end_parts
    monkeypatch.setattr(Results, "end_parts", lambda *given: end_parts(*given) and False)
    assert function.invoke(event, Context())["objects"][0]["status"] == "done"
    assert len(results(bucket)) == 9


def test_a_checkpoint_that_is_none_is_not_believed(function: Function, bucket: Bucket) -> None:
    event = put(bucket, "a.jsonl", line(1) + b"\n" + line(2))
    etag = event["Records"][0]["s3"]["object"]["eTag"]
    name = f"results/a.jsonl.{etag}.results.jsonl.checkpoint"
    bucket.put(name, b'{"version": 1, "lines": "many"}')
    function.invoke(event, Context())
    assert [result["id"] for result in results(bucket)] == [1, 2]


STATES = {
    "StartAt": "Done",
    "States": {"Done": {"Type": "Pass", "End": True}},
}


def test_a_file_over_a_size_is_handed_to_the_state_machine_once(bucket: Bucket, moto: str) -> None:
    import boto3

    client: Any = boto3.client("stepfunctions")
    role = "arn:aws:iam::123456789012:role/states"
    machine = client.create_state_machine(
        name="batches", definition=json.dumps(STATES), roleArn=role
    )["stateMachineArn"]
    settings = Settings(
        model_dir=str(DEMO),
        results=f"s3://{bucket.name}/results",
        state_machine=machine,
        max_object_bytes=1000,
    )
    event = put(bucket, "a.jsonl", b"\n".join(map(line, range(100))))
    function = Function(settings)
    first, second = (function.invoke(event, Context())["objects"][0] for _ in range(2))
    assert first == second
    assert first["status"] == "handed over"
    (execution,) = client.list_executions(stateMachineArn=machine)["executions"]
    assert execution["name"] == first["execution"]
    given = client.describe_execution(executionArn=execution["executionArn"])["input"]
    assert json.loads(given)["key"] == "a.jsonl"


def every_kind_of_line(i: int) -> bytes:
    bad = {
        5: b"{bad json",
        15: b"",
        25: json.dumps({"prompt": ["a", 5], "id": i}).encode(),
        35: b'{"prompt": "\xff"}',
        45: line(i - 1),  # an id that was there
        55: b"[]",
        65: json.dumps({"prompt": "a " * 600, "id": i}).encode(),  # over the context
    }
    return b"x" * 2 * MB if i in (1000, 4000) else bad.get(i % 100, line(i))


@pytest.mark.timeout(300)
@pytest.mark.skipif(RIE is None, reason="AWS's emulator is not installed: `make test` does")
def test_a_file_of_5000_lines_survives_bad_lines_deadlines_and_a_kill(
    bucket: Bucket, moto: str, tmp_path: Path, demo: Engine
) -> None:
    lines = [every_kind_of_line(i) for i in range(5000)]
    event = put(bucket, "a.jsonl", b"\n".join(lines) + b"\n")
    environ = CREDENTIALS | {
        "AWS_ENDPOINT_URL": f"http://{moto}",
        "GPT2_RESULTS": f"s3://{bucket.name}/results",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "2",
    }
    assert RIE
    unfinished = killed = 0
    reply: Any = None
    while not reply or "objects" not in reply:
        with ExitStack() as stack:
            function = stack.enter_context(emulator(RIE, tmp_path / f"log{killed}", environ))
            reply = None
            while not reply or "objects" not in reply:
                # Each invoke has some 1.4 s for its work; once some is done, one is killed at it.
                timer = threading.Timer(0.6, function.kill)
                if unfinished and not killed:
                    timer.start()
                try:
                    reply = function.invoke(event)
                except (URLError, OSError):
                    killed += 1
                    break
                finally:
                    timer.cancel()
                unfinished += reply.get("errorType") == "Unfinished"
                assert reply.get("errorType") in (None, "Unfinished"), reply
    assert unfinished
    assert killed
    found = results(bucket)
    assert [result["line"] for result in found] == list(range(1, 5001))
    alone = {
        (n, count): demo.generate(f"There was a king {n}", count).text
        for n in range(20)
        for count in (1, 2, 3)
    }
    for i, result in enumerate(found):
        if i in (1000, 4000) or i % 100 in (5, 15, 25, 35, 55, 65):
            assert result["error"]["type"] in ("BadRequest", "BodyTooLarge", "PromptTooLong"), i
        else:
            j = i - 1 if i % 100 == 45 else i
            assert result["id"] == j
            assert result["generated_text"] == alone[j % 20, 1 + j % 3]
    (done,) = reply["objects"]
    if done["status"] == "done":  # not where the kill came after the last line, before the reply
        assert done["errors"] == 2 + 6 * 50
