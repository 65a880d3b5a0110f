"""Queue messages, with AWS's emulator and moto's SQS and S3 over HTTP."""

import json
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any
from urllib.error import URLError

import pytest

from gpt2core import Engine
from handler.app import Function
from handler.batch import queue, request_batch
from handler.batch.storage import Storage
from handler.errors import ObjectUnavailable, ResultsUnavailable, Unfinished
from handler.settings import Settings
from tests.conftest import DEMO
from tests.support.emulator import Emulator, emulator, emulator_path
from tests.support.events import Context, failed, queue_event
from tests.support.queue_poller import Queue
from tests.support.s3_server import CREDENTIALS, Bucket

RIE = emulator_path()
pytestmark = pytest.mark.usefixtures("aws_settings")


@pytest.fixture
def function(bucket: Bucket) -> Function:
    return Function(Settings(model_dir=str(DEMO), results=f"s3://{bucket.name}/queue"))


def request(i: int) -> dict[str, Any]:
    return {"prompt": f"Once upon a time {i}", "max_new_tokens": 2 + i % 7}


def test_results_are_objects_named_after_their_messages(
    function: Function, bucket: Bucket, demo: Engine
) -> None:
    reply = function.invoke(
        queue_event(request(0) | {"id": "mine"}, {"inputs": "The fox"}), Context()
    )
    assert reply == {"batchItemFailures": []}
    found = bucket.content()
    assert set(found) == {"queue/m0.json", "queue/m1.json"}
    first, second = (json.loads(found[f"queue/m{i}.json"]) for i in (0, 1))
    assert first == {
        "id": "mine",
        "generated_text": demo.generate("Once upon a time 0", 2).text,
        "finish_reason": "length",
        "usage": {"prompt_tokens": first["usage"]["prompt_tokens"], "completion_tokens": 2},
    }
    assert second["generated_text"] == "The fox" + demo.generate("The fox").text


def test_an_invalid_message_fails_alone(function: Function, bucket: Bucket) -> None:
    too_long = {"prompt": "a " * 2000}
    reply = function.invoke(
        queue_event(request(0), "{", request(1), too_long, {"prompt": 5}), Context()
    )
    assert failed(reply) == ["m1", "m3", "m4"]
    assert set(bucket.content()) == {"queue/m0.json", "queue/m2.json"}


def test_a_redelivered_message_is_not_generated_again(
    function: Function, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    function.invoke(queue_event(request(0)), Context())
    before = bucket.content()
    capsys.readouterr()
    assert failed(function.invoke(queue_event(request(0), request(1)), Context())) == []
    after = bucket.content()
    assert json.loads(capsys.readouterr().err)["Requests"] == 1
    assert after["queue/m0.json"] == before["queue/m0.json"]


GONE = {
    "Records": [
        {
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": "nowhere-at-all"}, "object": {"key": "a.jsonl"}},
        }
    ]
}
NO_PROMPTS = json.loads(json.dumps(GONE).replace("a.jsonl", "a.csv"))


@pytest.mark.parametrize(
    ("bad", "name", "kind"),
    [
        ({"prompt": 5, "id": "mine"}, "mine", "BadRequest"),
        ("{", None, "BadRequest"),
        ({"prompt": "a", "no such field": 1}, None, "BadRequest"),
        ({"prompt": "a " * 2000, "id": 7}, 7, "PromptTooLong"),
        ({"prompt": "a", "max_new_tokens": 5000}, None, "LimitExceeded"),
        (GONE, None, "ObjectGone"),
        (NO_PROMPTS, None, "UnsupportedObject"),
    ],
)
def test_a_permanent_failure_in_a_fifo_queue_has_an_error_result(
    bad: Any, name: Any, kind: str, function: Function, bucket: Bucket
) -> None:
    event = queue_event(bad, request(0), request(1), request(2), fifo=True, groups="abca")
    assert failed(function.invoke(event, Context())) == []
    found = {key: json.loads(content) for key, content in bucket.content().items()}
    assert set(found) == {f"queue/m{i}.json" for i in range(4)}
    assert (found["queue/m0.json"]["id"], found["queue/m0.json"]["error"]["type"]) == (name, kind)
    assert all("generated_text" in found[f"queue/m{i}.json"] for i in (1, 2, 3))


@pytest.mark.parametrize("cause", ["result", "time", "file"])
def test_a_retryable_failure_blocks_its_message_group(
    cause: str, function: Function, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, decode, one = Storage.write, request_batch.complete_all, request(1)

    def reject(self: Storage, name: str, *given: Any) -> None:
        if name == "m1.json":
            raise ResultsUnavailable("not now")
        write(self, name, *given)

    def cut_off(*given: Any) -> Any:
        for name, done in decode(*given):
            yield name, Unfinished("no time") if name == "m1" else done

    def forbid(*_: Any) -> Any:
        raise ObjectUnavailable("not allowed")

    if cause == "result":
        monkeypatch.setattr(Storage, "write", reject)
    elif cause == "time":
        monkeypatch.setattr(queue, "complete_all", cut_off)
    else:
        one = GONE
        monkeypatch.setattr(Storage, "head", forbid)
    event = queue_event(request(0), one, request(2), request(3), "{", fifo=True, groups="aaaba")
    assert failed(function.invoke(event, Context())) == ["m1", "m2", "m4"]
    assert set(bucket.content()) == {"queue/m0.json", "queue/m3.json"}
    monkeypatch.undo()


def test_results_of_a_group_are_written_in_order(
    function: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []
    ended: list[str] = []
    write = Storage.write

    def watched(self: Storage, name: str, *given: Any) -> None:
        began.append(name)
        write(self, name, *given)
        ended.append(name)

    monkeypatch.setattr(Storage, "write", watched)
    bodies = [request(9 - i) if i != 4 else "{" for i in range(10)]  # the last ones finish first
    assert failed(function.invoke(queue_event(*bodies, fifo=True, groups="ababababab"))) == []
    for group in ([0, 2, 4, 6, 8], [1, 3, 5, 7, 9]):
        names = [f"m{i}.json" for i in group]
        assert [name for name in began if name in names] == names
        assert [name for name in ended if name in names] == names


def test_groups_of_a_standard_queue_have_no_order(function: Function, bucket: Bucket) -> None:
    event = queue_event("{", request(0), groups="aa")
    assert failed(function.invoke(event, Context())) == ["m0"]
    assert set(bucket.content()) == {"queue/m1.json"}


def test_a_result_names_its_model_and_those_of_others_are_ignored(
    function: Function, bucket: Bucket, demo: Engine, tmp_path: Path
) -> None:
    def made_by() -> str:
        head = bucket.client.head_object(Bucket=bucket.name, Key="queue/m0.json")
        return str(head["Metadata"]["model-revision"])

    other = Path(shutil.copytree(DEMO, tmp_path / "other"))
    (other / "generation_config.json").write_text("{}")
    function.invoke(queue_event(request(0)), Context())
    assert made_by() == demo.revision
    settings = function.settings._replace(model_dir=str(other))
    Function(settings).invoke(queue_event(request(0)), Context())
    assert made_by() == Engine.open(other).revision != demo.revision


def test_a_result_without_a_model_is_replaced(function: Function, bucket: Bucket) -> None:
    bucket.put("queue/m0.json", b"by an earlier version")
    function.invoke(queue_event(request(0)), Context())
    assert b"generated_text" in bucket.content()["queue/m0.json"]


@pytest.mark.parametrize("fifo", [False, True])
def test_messages_of_a_megabyte_are_processed_or_rejected(
    fifo: bool, function: Function, bucket: Bucket
) -> None:
    padded = json.dumps(request(0)).ljust(1 << 20)
    too_long = json.dumps({"prompt": "a" * (1 << 20), "id": "x" * 50_000})
    event = queue_event(padded, too_long, fifo=fifo, groups="ab")
    assert failed(function.invoke(event, Context())) == ([] if fifo else ["m1"])
    found = bucket.content()
    assert b"generated_text" in found["queue/m0.json"]
    assert ("queue/m1.json" in found) == fifo


def test_near_the_deadline_all_messages_stay_in_the_queue(
    function: Function, bucket: Bucket
) -> None:
    function.invoke({"warmup": True}, Context())
    reply = function.invoke(queue_event(request(0), request(1)), Context(0))
    assert failed(reply) == ["m0", "m1"]
    assert bucket.content() == {}


def test_without_a_results_setting_the_batch_fails(moto: str) -> None:
    function = Function(Settings(model_dir=str(DEMO)))
    with pytest.raises(ResultsUnavailable, match="GPT2_RESULTS is not set"):
        function.invoke(queue_event(request(0)), Context())


def test_a_missing_bucket_fails_the_batch(bucket: Bucket) -> None:
    function = Function(Settings(model_dir=str(DEMO), results="s3://nowhere-at-all/x"))
    reply = function.invoke(queue_event(request(0)), Context())
    assert failed(reply) == ["m0"]


def test_the_log_has_ids_and_error_types_but_no_text(
    function: Function, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = (
        {"prompt": "secret words"},
        {"prompt": 5, "id": "secret"},
        {"secret": "secret"},
        {"prompt": "a", "a secret": 1},
        {"inputs": "a", "parameters": {"a secret": 1}},
    )
    function.invoke(queue_event(*bodies), Context())
    out, err = capsys.readouterr()
    assert "secret" not in out + err
    *warnings, line = map(json.loads, err.splitlines())
    assert [warning["message_id"] for warning in warnings] == ["m1", "m2", "m3", "m4"]
    assert (line["Source"], line["Requests"], line["Errors"]) == ("sqs", 5, 4)


class RestartingFunction:
    """The function under AWS's emulator, killed at pseudo-random times and restarted."""

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
    """Every valid message has its result, and every invalid one is a dead letter."""
    bucket, queue = Bucket(moto, name), Queue(moto, name)
    bad = ["{", '{"prompt": 5}', '{"prompt": "a", "num_beams": 1}', '{"max_new_tokens": 1}']
    bodies = [
        bad[i // 10 % len(bad)] if i % 10 == 3 else json.dumps(request(i)) for i in range(count)
    ]
    ids = queue.send(bodies)
    environ = CREDENTIALS | {
        "AWS_ENDPOINT_URL": f"http://{moto}",
        "GPT2_RESULTS": f"s3://{name}/out",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "30",
    }
    function = RestartingFunction(folder, environ, seed=7, kills=kills)
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
    found = bucket.content()
    assert set(found) == {f"out/{ids[i]}.json" for i in good}
    engine = Engine.open(DEMO)
    for i in good:
        result = json.loads(found[f"out/{ids[i]}.json"])
        wanted = request(i)
        alone = engine.generate(wanted["prompt"], wanted["max_new_tokens"])
        assert result["generated_text"] == alone.text


@pytest.mark.skipif(RIE is None, reason="AWS's emulator is not installed: `make test` does")
def test_every_message_has_its_result_although_functions_are_killed(
    moto: str, tmp_path: Path
) -> None:
    run_a_queue(moto, tmp_path, 60, 2, "killed")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(RIE is None, reason="AWS's emulator is not installed: `make test` does")
def test_every_one_of_a_thousand_messages_has_its_result(moto: str, tmp_path: Path) -> None:
    run_a_queue(moto, tmp_path, 1000, 12, "thousand")


def run_groups(moto: str, folder: Path, count: int, kills: int, name: str) -> None:
    """Ten groups: results are in order within each, and never change."""
    bucket, source = Bucket(moto, name), Queue(moto, name, fifo=True)
    bad = ["{", '{"prompt": 5}', '{"prompt": "a", "no": 1}', json.dumps({"prompt": "a " * 2000})]
    bad += [json.dumps(GONE), json.dumps(NO_PROMPTS), "[]"]
    random = Random(11)
    bodies = [
        bad[i % len(bad)] if random.random() < 0.2 else json.dumps(request(i)) for i in range(count)
    ]
    groups = [random.choice("abcdefghij") for _ in bodies]
    ids = source.send(bodies, groups)
    environ = CREDENTIALS | {
        "AWS_ENDPOINT_URL": f"http://{moto}",
        "GPT2_RESULTS": f"s3://{name}/out",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "30",
    }
    function = RestartingFunction(folder, environ, seed=7, kills=kills)
    acknowledged: list[str] = []
    written: dict[str, bytes] = {}

    def invoke(event: Any) -> Any:
        reply = function.invoke(event)
        names = [record["messageId"] for record in event["Records"]]
        if "batchItemFailures" in reply:
            acknowledged.extend(n for n in names if n not in failed(reply))
        for n in names:  # a result never changes
            content = bucket.content(f"out/{n}.json").get(f"out/{n}.json")
            assert written.get(n) in (None, content)
            if content:
                written[n] = content
        for letter in set(groups):  # and is not written before those of earlier messages
            there = [i in written for i, group in zip(ids, groups, strict=True) if group == letter]
            assert there == sorted(there, reverse=True)
        return reply

    try:
        polls = 0
        while source.poll(invoke):
            polls += 1
            assert polls < 20 * count
    finally:
        function.close()
    assert function.killed == kills
    assert source.dead_letters() == []
    assert sorted(acknowledged) == sorted(ids)
    for letter in set(groups):
        members = {i for i, group in zip(ids, groups, strict=True) if group == letter}
        assert [i for i in acknowledged if i in members] == [i for i in ids if i in members]
    engine = Engine.open(DEMO)
    for i, body in enumerate(bodies):
        result = json.loads(written[ids[i]])
        if body in bad:
            assert result["error"]["type"]
        else:
            wanted = request(i)
            alone = engine.generate(wanted["prompt"], wanted["max_new_tokens"])
            assert result["generated_text"] == alone.text


@pytest.mark.skipif(RIE is None, reason="AWS's emulator is not installed: `make test` does")
def test_groups_keep_their_order_although_functions_are_killed(moto: str, tmp_path: Path) -> None:
    run_groups(moto, tmp_path, 60, 2, "groups")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(RIE is None, reason="AWS's emulator is not installed: `make test` does")
def test_ten_groups_of_five_hundred_messages_keep_their_order(moto: str, tmp_path: Path) -> None:
    run_groups(moto, tmp_path, 500, 10, "manygroups")
