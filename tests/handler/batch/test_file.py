"""Files of prompts in S3 and their result files, with moto's S3 over HTTP."""

import gzip
import json
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote_plus

import pytest
from botocore.stub import Stubber

from gpt2core import Engine
from handler import app, invoke
from handler.app import Function
from handler.batch import file, request_batch, result_file
from handler.batch.storage import Storage
from handler.errors import ObjectGone, ObjectUnavailable, Unfinished, UnsupportedObject
from handler.items import S3Object
from handler.settings import Settings
from tests.conftest import DEMO
from tests.support.clock import Clock
from tests.support.emulator import emulator, emulator_path
from tests.support.events import Context, failed, load_event, queue_event
from tests.support.s3_server import CREDENTIALS, Bucket

RIE = emulator_path()
pytestmark = pytest.mark.usefixtures("aws_settings")
MB = 1024 * 1024


@pytest.fixture
def function(bucket: Bucket) -> Function:
    return Function(Settings(model_dir=str(DEMO), results=f"s3://{bucket.name}/results"))


def put(bucket: Bucket, key: str, content: bytes, **arguments: Any) -> dict[str, Any]:
    """Upload a file; returns its notification."""
    bucket.put(key, content, **arguments)
    event = load_event("batch-s3")
    s3 = event["Records"][0]["s3"]
    s3["bucket"]["name"] = bucket.name
    head = bucket.client.head_object(Bucket=bucket.name, Key=key)
    s3["object"] = {"key": quote_plus(key), "eTag": head["ETag"].strip('"')}
    return dict(event)


def results(bucket: Bucket) -> list[dict[str, Any]]:
    """The lines of the only result file."""
    found = {k: v for k, v in bucket.content().items() if k.startswith("results/")}
    (content,) = found.values()
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.decode().split("\n")[:-1]]


def line(i: int) -> bytes:
    fields = {"prompt": f"There was a king {i % 20}", "max_new_tokens": 1 + i % 3, "id": i}
    return json.dumps(fields).encode()


def test_every_line_has_a_result_in_the_file_of_the_same_name(
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


def test_eventbridge_events_give_the_same_results(function: Function, bucket: Bucket) -> None:
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
        Bucket=bucket.name, Delete={"Objects": [{"Key": k} for k in bucket.content()]}
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


def test_a_finished_file_is_not_processed_again(function: Function, bucket: Bucket) -> None:
    event = put(bucket, "a.jsonl", line(1))
    first = function.invoke(event, Context())["objects"][0]
    second = function.invoke(event, Context())["objects"][0]
    assert (first["status"], second["status"]) == ("done", "unchanged")


@pytest.mark.parametrize(
    ("key", "words"),
    [("a.csv", r"one of \.jsonl"), ("results/a.jsonl", "below the prefix of the results")],
)
def test_unsupported_files_are_rejected(
    function: Function, bucket: Bucket, key: str, words: str
) -> None:
    with pytest.raises(UnsupportedObject, match=words):
        function.invoke(put(bucket, key, line(1)), Context())


def test_a_file_changed_or_deleted_after_its_event_is_an_error(
    function: Function, bucket: Bucket
) -> None:
    event = put(bucket, "a.jsonl", line(1))
    bucket.put("a.jsonl", line(2))
    with pytest.raises(ObjectUnavailable, match="has changed"):
        function.invoke(event, Context())
    bucket.delete("a.jsonl")
    with pytest.raises(ObjectGone, match="no longer exists"):
        function.invoke(event, Context())


def test_a_403_may_be_a_deleted_file_where_the_function_may_not_list(function: Function) -> None:
    storage = Storage(function.settings)
    with Stubber(storage._client) as s3:
        s3.add_client_error("head_object", "403", http_status_code=403)
        with pytest.raises(ObjectUnavailable, match=r"s3:GetObject .* or the object no longer"):
            storage.head(S3Object("b", "a.jsonl"))


def test_a_message_with_a_file_stays_in_the_queue_until_the_file_is_finished(
    function: Function, bucket: Bucket
) -> None:
    event = put(bucket, "a.jsonl", line(1))
    function.invoke({"warmup": True}, Context())
    assert failed(function.invoke(queue_event(event), Context(0))) == ["m0"]
    assert failed(function.invoke(queue_event(event), Context())) == []
    assert len(results(bucket)) == 1


def test_a_retry_continues_after_the_deadline(
    function: Function, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 1.0)  # only passes over the weights take time, a second each
    for module in (app, file, invoke, request_batch):
        monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    event = put(bucket, "a.jsonl.gz", gzip.compress(b"\n".join(map(line, range(400)))))
    done = 0
    for _ in range(2):
        with pytest.raises(Unfinished, match="time ran out after") as caught:
            function.invoke(event, Context(10_000))
        (left,) = (key for key in bucket.content() if key.startswith("results/"))
        assert left.endswith(".checkpoint")
        lines = int(caught.value.message.partition("time ran out after ")[2].split()[0])
        assert lines > done
        done = lines
    assert function.invoke(event, Context(60_000))["objects"][0]["lines"] == 400
    assert [result["id"] for result in results(bucket)] == list(range(400))


def big(i: int) -> bytes:
    return json.dumps({"prompt": "a", "max_new_tokens": 1, "id": f"{i}:" + "x" * 600_000}).encode()


def test_large_results_are_uploaded_in_parts_and_visible_only_when_complete(
    function: Function, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = put(bucket, "a.jsonl", b"\n".join(map(big, range(20))))
    monkeypatch.setattr(result_file, "PART_BYTES", 5 * MB)
    publish = result_file.ResultFile.publish

    def stop(self: Any) -> None:
        raise Unfinished("stopped")

    monkeypatch.setattr(result_file.ResultFile, "publish", stop)
    with pytest.raises(Unfinished):
        function.invoke(event, Context())
    (left,) = (key for key in bucket.content() if key.startswith("results/"))
    assert left.endswith(".checkpoint")
    monkeypatch.setattr(result_file.ResultFile, "publish", publish)
    function.invoke(event, Context())
    assert [result["id"].split(":")[0] for result in results(bucket)] == [str(i) for i in range(20)]


def test_an_aborted_upload_is_restarted(
    function: Function, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = put(bucket, "a.jsonl", b"\n".join(map(big, range(9))))  # all within the first part
    monkeypatch.setattr(result_file, "PART_BYTES", 5 * MB)
    with monkeypatch.context() as patch:
        # S3 replies NoSuchUpload for a completed upload; moto fails instead.
        patch.setattr(Storage, "complete_multipart_upload", lambda *_: False)
        with pytest.raises(Unfinished, match="from the beginning"):
            function.invoke(event, Context())
    assert not [key for key in bucket.content() if key.startswith("results/")]
    function.invoke(event, Context())
    assert len(results(bucket)) == 9


def test_an_upload_completed_by_another_writer_is_finished(
    function: Function, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = put(bucket, "a.jsonl", b"\n".join(map(big, range(9))))
    monkeypatch.setattr(result_file, "PART_BYTES", 5 * MB)
    complete_multipart_upload = Storage.complete_multipart_upload
    monkeypatch.setattr(
        Storage,
        "complete_multipart_upload",
        lambda *given: complete_multipart_upload(*given) and False,
    )
    assert function.invoke(event, Context())["objects"][0]["status"] == "done"
    assert len(results(bucket)) == 9


def test_an_invalid_checkpoint_is_ignored(function: Function, bucket: Bucket) -> None:
    event = put(bucket, "a.jsonl", line(1) + b"\n" + line(2))
    etag = event["Records"][0]["s3"]["object"]["eTag"]
    name = f"results/a.jsonl.{etag}.results.jsonl.checkpoint"
    bucket.put(name, b'{"version": 1, "lines": "many"}')
    function.invoke(event, Context())
    assert [result["id"] for result in results(bucket)] == [1, 2]


def test_processing_stops_when_another_writer_completes_the_upload(
    function: Function, bucket: Bucket, demo: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = put(bucket, "a.jsonl", b"\n".join(map(big, range(60))))
    etag = event["Records"][0]["s3"]["object"]["eTag"]
    key = f"results/a.jsonl.{etag}.results.jsonl"
    monkeypatch.setattr(result_file, "PART_BYTES", 5 * MB)
    parts = 0

    def upload_part(*_: Any) -> None:
        nonlocal parts
        parts += 1
        bucket.put(key, b"{}\n", Metadata={"model-revision": demo.revision})

    monkeypatch.setattr(Storage, "upload_part", upload_part)
    assert function.invoke(event, Context())["objects"][0]["status"] == "done"
    assert parts == 1
    assert results(bucket) == [{}]


def test_results_of_another_model_do_not_stop_processing(
    function: Function, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = put(bucket, "a.jsonl", b"\n".join(map(big, range(20))))
    etag = event["Records"][0]["s3"]["object"]["eTag"]
    key = f"results/a.jsonl.{etag}.results.jsonl"
    monkeypatch.setattr(result_file, "PART_BYTES", 5 * MB)
    with monkeypatch.context() as patch:
        patch.setattr(
            Storage,
            "upload_part",
            lambda *_: bucket.put(key, b"{}\n", Metadata={"model-revision": "another"}),
        )
        with pytest.raises(Unfinished, match="aborted"):
            function.invoke(event, Context())
    assert function.invoke(event, Context())["objects"][0]["lines"] == 20
    assert len(results(bucket)) == 20


def another_model(function: Function, folder: Path) -> Function:
    """A function with a different model, which ends texts earlier."""
    shutil.copytree(DEMO, folder)
    (folder / "generation_config.json").write_text("{}")
    return Function(function.settings._replace(model_dir=str(folder)))


@pytest.mark.parametrize("part", [None, 5 * MB])
def test_a_checkpoint_of_another_model_is_ignored(
    part: int | None,
    function: Function,
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if part:
        monkeypatch.setattr(result_file, "PART_BYTES", part)
    event = put(bucket, "a.jsonl", b"\n".join(map(big, range(12))))

    def stop(_: Any) -> None:
        raise Unfinished("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(result_file.ResultFile, "publish", stop)
        if not part:
            patch.setattr(result_file, "CHECKPOINT_INTERVAL_S", 0.0)
        with pytest.raises(Unfinished):
            function.invoke(event, Context())
    assert any(key.endswith(".checkpoint") for key in bucket.content())
    capsys.readouterr()
    other = another_model(function, tmp_path / "other")
    assert other.invoke(event, Context())["objects"][0]["lines"] == 12
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["Requests"] == 12
    assert [result["id"].split(":")[0] for result in results(bucket)] == [str(i) for i in range(12)]
    uploads = bucket.client.list_multipart_uploads(Bucket=bucket.name)
    assert not uploads.get("Uploads")


def test_results_of_another_model_are_replaced(
    function: Function, bucket: Bucket, tmp_path: Path
) -> None:
    event = put(bucket, "a.jsonl", line(1))
    other = another_model(function, tmp_path / "other")
    statuses = [f.invoke(event, Context())["objects"][0]["status"] for f in (function, other)]
    assert statuses == ["done", "done"]
    assert other.invoke(event, Context())["objects"][0]["status"] == "unchanged"


@pytest.mark.parametrize(
    ("key", "encoding"),
    [
        ("a.jsonl", "gzip"),
        ("a.jsonl", "aws-chunked,GZIP"),
        ("a.jsonl", ""),
        ("a.jsonl.gz", "gzip"),
        ("a.txt", "x-gzip"),
    ],
)
def test_compressed_files_are_recognized_by_content(
    key: str, encoding: str, function: Function, bucket: Bucket
) -> None:
    event = put(bucket, key, gzip.compress(line(1) + b"\n" + line(2)), ContentEncoding=encoding)
    assert function.invoke(event, Context())["objects"][0]["errors"] == 0
    assert len(results(bucket)) == 2


def test_an_encoding_that_is_not_supported_is_rejected(function: Function, bucket: Bucket) -> None:
    event = put(bucket, "a.jsonl", b"\x0b\x02\x80", ContentEncoding="br")
    with pytest.raises(UnsupportedObject, match="Content-Encoding"):
        function.invoke(event, Context())


@pytest.mark.parametrize("letter", ["a", "ü", "🦊"])
def test_the_results_of_a_long_key_have_a_shorter_name(
    letter: str, function: Function, bucket: Bucket
) -> None:
    begin = letter * (1015 // len(letter.encode()))
    for end in ("1.jsonl", "2.jsonl"):
        (done,) = function.invoke(put(bucket, begin + end, line(1)), Context())["objects"]
        assert done["status"] == "done"
    first, second = bucket.content("results/")
    for key in (first, second):
        assert len(f"{key}.checkpoint".encode()) <= 1024
        assert key.startswith(f"results/{letter * 10}")


def test_all_files_are_processed_before_an_error_is_raised(
    function: Function, bucket: Bucket
) -> None:
    first = put(bucket, "gone.jsonl", line(1))
    bucket.delete("gone.jsonl")
    broken = put(bucket, "b.jsonl", line(1))
    del broken["Records"][0]["s3"]["object"]["key"]
    good = [put(bucket, f"{i}.jsonl", line(1)) for i in range(2)]
    event = {"Records": [r for e in (first, broken, *good) for r in e["Records"]]}
    with pytest.raises(ObjectGone):
        function.invoke(event, Context())
    assert len(bucket.content("results/")) == 2
    assert failed(function.invoke(queue_event(event), Context())) == ["m0"]


def test_retryable_errors_are_raised_before_permanent_ones(
    function: Function, bucket: Bucket
) -> None:
    bucket.put("a.csv", line(1))
    events = [put(bucket, "a.csv", b""), put(bucket, "a.jsonl", line(1))]
    function.invoke({"warmup": True}, Context())
    with pytest.raises(Unfinished):
        function.invoke({"Records": [r for e in events for r in e["Records"]]}, Context(0))


def every_kind_of_line(i: int) -> bytes:
    bad = {
        5: b"{bad json",
        15: b"",
        25: json.dumps({"prompt": ["a", 5], "id": i}).encode(),
        35: b'{"prompt": "\xff"}',
        45: line(i - 1),  # a duplicate id
        55: b"[]",
        65: json.dumps({"prompt": "a " * 600, "id": i}).encode(),  # over the context
    }
    return b"x" * 2 * MB if i in (1000, 4000) else bad.get(i % 100, line(i))


@pytest.mark.slow
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
                # Each invoke has about 1.4 s. One is killed after it has processed some lines.
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
    if done["status"] == "done":  # unless it was killed between the last line and the reply
        assert done["errors"] == 2 + 6 * 50
