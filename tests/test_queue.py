"""Messages of a queue, by way of AWS's emulator and moto's SQS and S3 over HTTP."""

import json
import threading
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any
from urllib.error import URLError

import pytest

from gpt2core import Engine
from handler.app import Function
from handler.errors import ResultsUnavailable
from handler.settings import Settings
from tests.conftest import DEMO, load_event
from tests.emulator import Emulator, emulator, emulator_path
from tests.queue_poller import Queue
from tests.s3_server import CREDENTIALS, Bucket

RIE = emulator_path()
pytestmark = pytest.mark.usefixtures("aws_settings")


class Context:
    """What Lambda tells of an invoke."""

    aws_request_id = "8476a536-e9f4-11e8-9739-2dfe598c3fcd"

    def __init__(self, remaining_ms: int = 60_000) -> None:
        self.get_remaining_time_in_millis = lambda: remaining_ms


@pytest.fixture
def function(bucket: Bucket) -> Function:
    return Function(Settings(model_dir=str(DEMO), results=f"s3://{bucket.name}/queue"))


def content_of(bucket: Bucket) -> dict[str, bytes]:
    """Every object, by its key."""
    listed = bucket.client.list_objects_v2(Bucket=bucket.name)
    found = {}
    while True:
        for item in listed.get("Contents", []):
            body = bucket.client.get_object(Bucket=bucket.name, Key=item["Key"])["Body"]
            found[item["Key"]] = body.read()
        if not listed["IsTruncated"]:
            return found
        token = listed["NextContinuationToken"]
        listed = bucket.client.list_objects_v2(Bucket=bucket.name, ContinuationToken=token)


def records(*bodies: Any, fifo: bool = False) -> dict[str, Any]:
    event = load_event("batch-sqs-fifo" if fifo else "batch-sqs")
    one = event["Records"][0]
    texts = [body if isinstance(body, str) else json.dumps(body) for body in bodies]
    return {"Records": [one | {"messageId": f"m{i}", "body": b} for i, b in enumerate(texts)]}


def failed(reply: Any) -> list[str]:
    return [failure["itemIdentifier"] for failure in reply["batchItemFailures"]]


def asked(i: int) -> dict[str, Any]:
    return {"prompt": f"Once upon a time {i}", "max_new_tokens": 2 + i % 7}


def test_results_are_objects_that_are_named_for_their_messages(
    function: Function, bucket: Bucket, demo: Engine
) -> None:
    reply = function.invoke(records(asked(0) | {"id": "mine"}, {"inputs": "The fox"}), Context())
    assert reply == {"batchItemFailures": []}
    found = content_of(bucket)
    assert set(found) == {"queue/m0.json", "queue/m1.json"}
    first, second = (json.loads(found[f"queue/m{i}.json"]) for i in (0, 1))
    assert first == {
        "id": "mine",
        "generated_text": demo.generate("Once upon a time 0", 2).text,
        "finish_reason": "length",
        "usage": {"prompt_tokens": first["usage"]["prompt_tokens"], "completion_tokens": 2},
    }
    assert second["generated_text"] == "The fox" + demo.generate("The fox").text


def test_a_bad_message_fails_alone(function: Function, bucket: Bucket) -> None:
    too_long = {"prompt": "a " * 2000}
    reply = function.invoke(records(asked(0), "{", asked(1), too_long, {"prompt": 5}), Context())
    assert failed(reply) == ["m1", "m3", "m4"]
    assert set(content_of(bucket)) == {"queue/m0.json", "queue/m2.json"}


def test_a_message_that_comes_again_is_not_generated_again(
    function: Function, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    function.invoke(records(asked(0)), Context())
    before = content_of(bucket)
    capsys.readouterr()
    assert failed(function.invoke(records(asked(0), asked(1)), Context())) == []
    after = content_of(bucket)
    assert json.loads(capsys.readouterr().err)["Requests"] == 1
    assert after["queue/m0.json"] == before["queue/m0.json"]


def test_a_fifo_queue_stops_at_its_first_failure(function: Function, bucket: Bucket) -> None:
    reply = function.invoke(records(asked(0), asked(1), "{", asked(2), fifo=True), Context())
    assert failed(reply) == ["m2", "m3"]
    assert set(content_of(bucket)) == {"queue/m0.json", "queue/m1.json"}


def test_a_fifo_queue_keeps_all_from_a_message_that_is_too_long_on(
    function: Function, bucket: Bucket
) -> None:
    too_long = {"prompt": "a " * 2000}
    reply = function.invoke(records(asked(0), too_long, asked(1), fifo=True), Context())
    assert failed(reply) == ["m1", "m2"]


def test_near_the_deadline_nothing_begins_and_all_stays(function: Function, bucket: Bucket) -> None:
    function.invoke({"warmup": True}, Context())
    reply = function.invoke(records(asked(0), asked(1)), Context(0))
    assert failed(reply) == ["m0", "m1"]
    assert content_of(bucket) == {}


def test_without_a_place_for_results_the_whole_batch_is_raised(moto: str) -> None:
    function = Function(Settings(model_dir=str(DEMO)))
    with pytest.raises(ResultsUnavailable, match="GPT2_RESULTS is not set"):
        function.invoke(records(asked(0)), Context())


def test_a_bucket_that_is_not_there_fails_the_whole_batch(bucket: Bucket) -> None:
    function = Function(Settings(model_dir=str(DEMO), results="s3://nowhere-at-all/x"))
    reply = function.invoke(records(asked(0)), Context())
    assert failed(reply) == ["m0"]


def test_the_log_has_ids_and_kinds_but_no_words(
    function: Function, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = ({"prompt": "secret words"}, {"prompt": 5, "id": "secret"}, {"secret": "secret"})
    function.invoke(records(*bodies), Context())
    out, err = capsys.readouterr()
    assert "secret" not in out + err
    *warnings, line = map(json.loads, err.splitlines())
    assert [warning["message_id"] for warning in warnings] == ["m1", "m2"]
    assert (line["Source"], line["Requests"], line["Errors"]) == ("sqs", 3, 2)


class Restarting:
    """The function under AWS's emulator, killed at seeded moments and started again."""

    def __init__(self, folder: Path, environ: dict[str, str], seed: int, kills: int) -> None:
        self._folder = folder
        self._environ = environ
        self._random = Random(seed)
        self._kills = kills
        self._stack = ExitStack()
        self._emulator: Emulator | None = None
        self.killed = 0

    def invoke(self, event: Any) -> Any:
        if self._emulator is None:
            assert RIE
            log = self._folder / f"log{self.killed}"
            self._emulator = self._stack.enter_context(emulator(RIE, log, self._environ))
        timer = None
        if self.killed < self._kills and self._random.random() < 0.5:
            timer = threading.Timer(self._random.uniform(0.0, 0.4), self._kill)
            timer.start()
        try:
            return self._emulator.invoke(event)
        except (URLError, OSError):
            return {"errorType": "Killed"}
        finally:
            if timer:
                timer.cancel()
                timer.join()

    def _kill(self) -> None:
        assert self._emulator
        self.killed += 1
        self._emulator.kill()
        self._stack.close()
        self._emulator = None

    def close(self) -> None:
        self._stack.close()


def run_a_queue(moto: str, folder: Path, count: int, kills: int, name: str) -> None:
    """Every good message has its result, every bad one is given up; nothing else is anywhere."""
    bucket, queue = Bucket(moto, name), Queue(moto, name)
    bad = ["{", '{"prompt": 5}', '{"prompt": "a", "temperature": 1}', '{"max_new_tokens": 1}']
    bodies = [
        bad[i // 10 % len(bad)] if i % 10 == 3 else json.dumps(asked(i)) for i in range(count)
    ]
    ids = queue.send(bodies)
    environ = CREDENTIALS | {
        "AWS_ENDPOINT_URL": f"http://{moto}",
        "GPT2_RESULTS": f"s3://{name}/out",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "30",
    }
    function = Restarting(folder, environ, seed=7, kills=kills)
    try:
        polls = 0
        while queue.poll(function.invoke):
            polls += 1
            assert polls < 20 * count
    finally:
        function.close()
    assert function.killed == kills
    good = {i for i in range(count) if i % 10 != 3}
    assert sorted(queue.dead_letters()) == sorted(ids[i] for i in range(count) if i not in good)
    found = content_of(bucket)
    assert set(found) == {f"out/{ids[i]}.json" for i in good}
    engine = Engine.open(DEMO)
    for i in good:
        result = json.loads(found[f"out/{ids[i]}.json"])
        wanted = asked(i)
        alone = engine.generate(wanted["prompt"], wanted["max_new_tokens"])
        assert result["generated_text"] == alone.text


@pytest.mark.skipif(RIE is None, reason="AWS's emulator is not installed: `make test` does")
def test_no_message_is_lost_or_done_wrong_while_functions_are_killed(
    moto: str, tmp_path: Path
) -> None:
    run_a_queue(moto, tmp_path, 60, 2, "killed")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(RIE is None, reason="AWS's emulator is not installed: `make test` does")
def test_no_message_of_a_thousand_is_lost_or_done_wrong(moto: str, tmp_path: Path) -> None:
    run_a_queue(moto, tmp_path, 1000, 12, "thousand")
