"""Event streams: buffered, through the local server, and framed for Lambda."""

import http.client
import json
import queue
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import time
from typing import Any

import pytest

from gpt2core.errors import CheckpointError, GPT2Error
from gpt2core.scheduler import Scheduler
from handler.app import Function
from handler.dialects.huggingface import HuggingFace
from handler.dialects.native import DIALECT as NATIVE_DIALECT
from handler.dialects.request import Dialect, Request
from handler.errors import BadRequest, LimitExceeded, TooManyRequests
from handler.items import parse_item
from handler.runtime.answer import answer
from handler.runtime.api import Invocation, RuntimeApi, Streamed
from handler.server import Server
from handler.settings import Settings
from tests.conftest import DEMO
from tests.support.dialects import SUPPORTED, name_of, path_of, request_of
from tests.support.events import Context, http_event, load_event, payload
from tests.support.runtime_api_server import OURS, RuntimeApiServer, runtime
from tests.support.until import until

HANDLER = "handler.app.lambda_handler"
FRAMES = "application/vnd.awslambda.http-integration-response"
NATIVE = {"prompt": "Once upon a time", "max_new_tokens": 8}
HUGGING_FACE = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 8}}


@pytest.fixture(scope="module")
def function() -> Function:
    return Function(Settings(model_dir=str(DEMO)))


def data(text: str) -> list[Any]:
    """The data of the events of a stream."""
    *events, rest = text.split("\n\n")
    assert rest == ""
    return [json.loads(event.removeprefix("data: ")) for event in events]


def streamed(function: Function, source: str = "api", **fields: Any) -> list[Any]:
    reply = function.invoke(http_event(source=source, stream=True, **fields))
    assert reply["headers"]["Content-Type"] == "text/event-stream; charset=utf-8"
    return data(reply["body"])


def test_a_native_stream_has_every_token_and_then_the_reply(function: Function) -> None:
    *tokens, last = streamed(function, **NATIVE)
    whole = payload(function.invoke(http_event(**NATIVE)))
    assert [token.keys() for token in tokens] == 8 * [{"token"}]
    assert all(type(token["token"]["id"]) is int for token in tokens)
    assert "".join(token["token"]["text"] for token in tokens) == whole["generated_text"]
    assert last.keys() == whole.keys()
    assert {k: last[k] for k in ("generated_text", "finish_reason", "usage", "model")} == {
        k: whole[k] for k in ("generated_text", "finish_reason", "usage", "model")
    }
    assert last["timings_ms"]["prefill"] > 0


def test_characters_are_never_split(function: Function) -> None:
    assert function.model.engine
    lead, tail = function.model.engine.tokenizer.encode("é")
    request_fields = {"prompt": "a", "max_new_tokens": 60, "temperature": 1.0, "seed": 7,
             "frequency_penalty": 2.0,
             "logit_bias": {str(lead): 100, str(tail): 100}}  # fmt: skip
    *tokens, last = streamed(function, **request_fields)
    assert "".join(token["token"]["text"] for token in tokens) == last["generated_text"]
    assert {"é", "\ufffd"} <= set(last["generated_text"])  # and bytes that are not a character
    assert any(not token["token"]["text"] for token in tokens)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"max_new_tokens": 8}, "length"),
        ({"max_new_tokens": 200}, "eos_token"),
        ({"max_new_tokens": 200, "stop": ["a"]}, "stop_sequence"),
    ],
)
def test_hugging_face_events_have_a_token_each_and_the_last_has_the_text(
    function: Function, parameters: dict[str, Any], reason: str
) -> None:
    request_fields = {"inputs": "Once upon a time", "parameters": {**parameters, "details": True}}
    events = streamed(function, **request_fields)
    (whole,) = payload(function.invoke(http_event(**request_fields)))
    assert all(event["token"].keys() == {"id", "text", "logprob", "special"} for event in events)
    assert all(event["token"]["logprob"] < 0 for event in events)
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert {event["generated_text"] for event in events[:-1]} <= {None}
    last = events[-1]
    assert last["generated_text"] == whole["generated_text"]
    assert whole["generated_text"].endswith("".join(e["token"]["text"] for e in events))
    assert last["details"]["finish_reason"] == whole["details"]["finish_reason"] == reason
    assert last["token"]["special"] == (reason == "eos_token")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TooManyRequests(1), "overloaded"),
        (LimitExceeded("too long"), "validation"),
        (CheckpointError("broken"), "generation"),
    ],
)
def test_hugging_face_errors_have_an_error_type(error: GPT2Error, kind: str) -> None:
    flat = {"error": error.message, "error_type": kind}
    assert HuggingFace().error_event(error) == HuggingFace().render_error(error)[1] == flat


def test_a_direct_invoke_gets_its_stream_as_one_string(function: Function) -> None:
    *tokens, last = data(function.invoke({**NATIVE, "stream": True}))
    assert (len(tokens), last["finish_reason"]) == (8, "length")


def test_an_error_in_a_buffered_stream_is_a_reply_with_its_status(
    function: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_pass(monkeypatch, 3)
    reply = function.invoke(http_event(source="api", stream=True, **NATIVE))
    assert (reply["statusCode"], payload(reply)["error"]["type"]) == (503, "CheckpointError")


def fail_pass(monkeypatch: pytest.MonkeyPatch, number: int, error: Exception | None = None) -> None:
    """Make the pass `number` from now on fail."""
    step, count = Scheduler.step, iter(range(1, 1000))

    def broken(self: Scheduler) -> Any:
        if next(count) == number:
            raise error or CheckpointError("the logits are not finite")
        return step(self)

    monkeypatch.setattr(Scheduler, "step", broken)


class Gate:
    """Permits the passes of a scheduler one by one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open: queue.Queue[None] = queue.Queue()
        self.passes = 0
        step = Scheduler.step

        def gated(scheduler: Scheduler) -> Any:
            self._open.get(timeout=30)
            self.passes += 1
            return step(scheduler)

        monkeypatch.setattr(Scheduler, "step", gated)

    def permit(self, passes: int) -> None:
        for _ in range(passes):
            self._open.put(None)


@pytest.fixture
def gate(function: Function, monkeypatch: pytest.MonkeyPatch) -> Gate:
    function.invoke({"prompt": "a", "max_new_tokens": 1})  # open
    return Gate(monkeypatch)


@contextmanager
def serving(handler: Callable[[Any, Any], Any]) -> Iterator[int]:
    with Server(0, handler=handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def open_stream(
    port: int, fields: dict[str, Any], path: str = "/generate"
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, json.dumps({**fields, "stream": True}))
    return connection, connection.getresponse()


def event_of(response: http.client.HTTPResponse, dialect: Dialect = NATIVE_DIALECT) -> Any:
    """The next event, up to the end of its frame."""
    begin, end = frame_of(dialect)
    text = ""
    while not text.endswith(end):
        line = response.readline().decode()
        assert line
        text += line
    sent = text.removeprefix(begin).removesuffix(end)
    return json.loads(sent) if sent != "[DONE]" else sent


def frame_of(dialect: Dialect) -> tuple[str, str]:
    """What precedes and what follows the data of an event."""
    begin, end = dialect.stream_class([]).frame("\0").split("\0")
    return begin, end


@pytest.fixture
def shared(function: Function, gate: Gate) -> Iterator[Function]:
    function.is_concurrent, function.decoding_thread = True, None
    yield function
    function.is_concurrent, function.decoding_thread = False, None


@pytest.mark.parametrize("dialect", SUPPORTED, ids=name_of)
def test_each_event_is_sent_before_the_next_token_is_computed(
    shared: Function, gate: Gate, dialect: Dialect
) -> None:
    path, fields = path_of(dialect), request_of(dialect, "Once upon a time", 8)
    gate.permit(8)
    whole = shared.invoke(http_event(path=path, source="api", stream=True, **fields))
    events = whole["body"].count(frame_of(dialect)[1])
    assert events >= 8
    with serving(shared.invoke) as port:
        gate.permit(1)
        connection, response = open_stream(port, fields, path)
        assert response.getheader("Transfer-Encoding") == "chunked"
        timing = response.getheader("Server-Timing") or ""
        assert "prefill;dur=0," not in timing
        assert "decode;dur=0," in timing
        event_of(response, dialect)
        for _ in range(7):  # each pass is permitted after the previous token has been read
            gate.permit(1)
            event_of(response, dialect)
        for _ in range(events - 8):
            event_of(response, dialect)
        assert response.read() == b""
        connection.close()


def disconnect_from_a_stream(port: int, gate: Gate) -> None:
    """Disconnect after the first of a hundred tokens, then permit three more passes."""
    gate.permit(1)
    connection, response = open_stream(port, {**NATIVE, "max_new_tokens": 100})
    event_of(response)
    response.close()
    connection.close()
    gate.permit(3)


def test_a_disconnected_client_cancels_its_sequence(shared: Function, gate: Gate) -> None:
    with serving(shared.invoke) as port:
        disconnect_from_a_stream(port, gate)
        until(lambda: shared.active_requests == 0)
        assert gate.passes <= 4


def test_a_disconnected_client_is_logged_and_is_no_error(
    shared: Function, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    log: list[str] = []

    def is_logged() -> bool:
        log.extend(capsys.readouterr().err.splitlines())
        return any(line.startswith("POST /generate 499 ") for line in log)

    with serving(shared.invoke) as port:
        disconnect_from_a_stream(port, gate)
        until(is_logged)
    (line,) = [json.loads(line) for line in log if line.startswith("{")]
    assert (line["Errors"], line["Requests"]) == (0, 1)


@pytest.mark.parametrize("dialect", SUPPORTED, ids=name_of)
def test_an_error_during_a_stream_is_an_event(
    function: Function,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dialect: Dialect,
) -> None:
    function.invoke({"prompt": "a", "max_new_tokens": 1})
    capsys.readouterr()
    fail_pass(monkeypatch, 3, error := CheckpointError("the logits are not finite"))
    with serving(function.invoke) as port:
        fields = request_of(dialect, "Once upon a time", 8)
        connection, response = open_stream(port, fields, path_of(dialect))
        assert response.status == 200
        event_of(response, dialect)
        event_of(response, dialect)
        assert event_of(response, dialect) == dialect.error_event(error)
        assert response.read() == b""
        connection.close()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line[0] == "{"]
    assert [line["Errors"] for line in lines if "Errors" in line] == [1]


def test_an_error_event_has_the_error_of_its_format() -> None:
    found = {name_of(d): d.error_event(CheckpointError("broken")) for d in SUPPORTED}
    assert found["Native"]["error"]["type"] == "CheckpointError"
    assert found["HuggingFace"] == {"error": "broken", "error_type": "generation"}
    assert found["OpenAI"]["error"]["type"] == "server_error"


def test_a_client_of_http_1_0_gets_no_chunks(function: Function) -> None:
    with serving(function.invoke) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"  # type: ignore[attr-defined]
        connection.request("POST", "/generate", json.dumps({**NATIVE, "stream": True}))
        response = connection.getresponse()
        assert response.getheader("Transfer-Encoding") is None
        assert len(data(response.read().decode())) == 9
        connection.close()


@pytest.fixture
def lambda_api() -> Iterator[RuntimeApiServer]:
    with RuntimeApiServer() as server:
        yield server


def parts(body: bytes) -> tuple[dict[str, Any], str]:
    """The prelude and body of a framed reply."""
    prelude, _, rest = body.partition(bytes(8))
    return json.loads(prelude), rest.decode()


@pytest.mark.parametrize(
    ("endpoints", "source", "framed"),
    [
        ("url", "url", True),
        ("rest", "rest", True),
        ("url,rest", "rest", True),
        ("url", "rest", False),
        ("rest", "url", False),
        ("url,rest", "api", False),
        ("url,rest", "alb", False),
        ("off", "url", False),
    ],
)
def test_only_the_configured_sources_stream(
    function: Function, endpoints: str, source: str, framed: bool
) -> None:
    context: Any = Context()
    context.accepts_streams = True
    settings = Settings.from_environ({"GPT2_STREAM": endpoints, "GPT2_MODEL_DIR": str(DEMO)})
    reply = Function(settings).invoke(http_event(source=source, stream=True, **NATIVE), context)
    assert isinstance(reply, Streamed) == framed
    assert function.invoke(http_event(source=source, **NATIVE))["statusCode"] == 200


def test_a_stream_through_the_runtime_has_lambdas_framing(
    lambda_api: RuntimeApiServer,
) -> None:
    event = http_event(source="url", stream=True, **NATIVE)
    with runtime(lambda_api, OURS, HANDLER, GPT2_STREAM="url,rest", GPT2_MODEL_DIR=str(DEMO)):
        first = lambda_api.invoke(json.dumps(event).encode())
        health = lambda_api.invoke(json.dumps(load_event("url-health")).encode())
        rest = lambda_api.invoke(json.dumps(load_event("rest-generate")).encode())
        bad = lambda_api.invoke(json.dumps(http_event("{")).encode())
        api = lambda_api.invoke(json.dumps(load_event("api-generate")).encode())
    assert first.headers["content-type"] == FRAMES
    assert first.headers["lambda-runtime-function-response-mode"] == "streaming"
    assert first.headers["transfer-encoding"] == "chunked"
    assert (
        first.headers["trailer"]
        == "Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body"
    )
    prelude, body = parts(first.body)
    assert prelude.keys() == {"statusCode", "headers", "cookies"}
    assert (prelude["statusCode"], prelude["cookies"]) == (200, [])
    assert first.body == json.dumps(prelude).encode() + bytes(8) + body.encode()
    assert len(data(body)) == 9
    assert first.trailers == {}
    for plain, status in ((health, 200), (rest, 200), (bad, 400)):
        prelude, body = parts(plain.body)
        assert plain.headers["content-type"] == FRAMES
        assert (prelude["statusCode"], prelude["headers"]["Content-Type"]) == (
            status,
            "application/json",
        )
        json.loads(body)
    assert api.headers["content-type"] == "application/json"
    assert json.loads(api.body)["statusCode"] == 200


def framed(function: Function, fields: dict[str, Any]) -> Iterator[bytes]:
    context: Any = Context()
    context.accepts_streams = True
    reply = function.invoke(http_event(source="url", stream=True, **fields), context)
    assert isinstance(reply, Streamed)
    return iter(reply.chunks)


@pytest.fixture
def framing() -> Function:
    function = Function(Settings(model_dir=str(DEMO), stream=("url",)))
    function.invoke({"prompt": "a", "max_new_tokens": 1})
    return function


def test_each_frame_is_sent_before_the_next_token_is_computed(
    framing: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    gate.permit(1)
    chunks = framed(framing, NATIVE)
    assert next(chunks).endswith(bytes(8))
    assert data(next(chunks).decode())[0].keys() == {"token"}
    gate.permit(7)
    assert len(list(chunks)) == 8


def test_closing_a_framed_stream_ends_it(
    framing: Function, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    chunks: Any = framed(framing, NATIVE)
    next(chunks)
    assert (framing.active_requests, capsys.readouterr().err) == (1, "")
    chunks.close()
    chunks.close()
    assert framing.active_requests == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert (json.loads(line)["Requests"], json.loads(line)["Errors"]) == (1, 0)


def test_an_error_during_a_framed_stream_is_sent_in_the_trailers(
    framing: Function, lambda_api: RuntimeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_pass(monkeypatch, 3)
    body = json.dumps(http_event(source="url", stream=True, **NATIVE)).encode()
    deadline = {"lambda-runtime-deadline-ms": str(int(1000 * (time() + 60)))}
    api = RuntimeApi(lambda_api.address)
    answer(api, Invocation("1", body, deadline), framing.invoke)
    api._disconnect()
    sent = lambda_api.replies.get(timeout=30)
    *tokens, error = data(parts(sent.body)[1])
    assert len(tokens) == 2
    assert error["error"]["type"] == "CheckpointError"
    assert sent.trailers["Lambda-Runtime-Function-Error-Type"] == "CheckpointError"
    error = json.loads(b64decode(sent.trailers["Lambda-Runtime-Function-Error-Body"]))
    assert error["errorType"] == "CheckpointError"


def test_unexpected_errors_are_reported_without_their_message(
    framing: Function, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_pass(monkeypatch, 2, RuntimeError("a prompt"))
    *_, last = take(framed(framing, NATIVE), 3)
    assert data(last.decode())[0]["error"]["type"] == "InternalError"
    assert "a prompt" not in last.decode() + capsys.readouterr().err


def take(chunks: Iterator[bytes], count: int) -> list[bytes]:
    return [next(chunks) for _ in range(count)]


def test_an_error_in_a_framed_stream_is_an_event_and_then_raised(
    framing: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_pass(monkeypatch, 2)
    chunks = framed(framing, NATIVE)
    _, token, error = (chunk.decode() for chunk in take(chunks, 3))
    assert (data(token)[0].keys(), data(error)[0].keys()) == ({"token"}, {"error"})
    with pytest.raises(CheckpointError):  # sent as the trailer
        next(chunks)
    assert framing.active_requests == 0


@pytest.mark.parametrize("dialect", SUPPORTED, ids=name_of)
def test_batch_requests_are_not_streamed(dialect: Dialect) -> None:
    fields = request_of(dialect, "x", 1)
    if not dialect.recognizes(fields):
        assert "/generate" not in dialect.routes  # only its path selects it; batches have no path
        return
    rejected = parse_item({**fields, "stream": True}).request
    assert isinstance(rejected, BadRequest)
    assert rejected.param == "stream"
    assert isinstance(parse_item({**fields, "stream": False}).request, Request)
