"""The runtime compared with awslambdaric on a Runtime API server, and without a Runtime API."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from handler.runtime import api as runtime_api
from handler.runtime import loop
from handler.runtime.answer import answer
from handler.runtime.api import Invocation, RuntimeApi, RuntimeApiError, Streamed
from tests.conftest import DEMO, ROOT
from tests.support.events import load_event
from tests.support.ports import free_ports, wait_for
from tests.support.runtime_api_server import (
    ARN,
    OURS,
    THEIRS,
    TRACE_ID,
    Reply,
    RuntimeApiServer,
    runtime,
)

FIXED = "tests.support.fixed_handler.handle"
RIC_ALONE = {"accept", "user-agent", "host", "expect", "connection"}


@pytest.fixture
def server() -> Iterator[RuntimeApiServer]:
    with RuntimeApiServer() as api:
        yield api


def ask_both(body: bytes, headers: dict[str, str] | None = None, **environ: str) -> list[Reply]:
    """Send one event to both runtimes, each with its own server."""
    answers = []
    for module in (OURS, THEIRS):
        with RuntimeApiServer() as api, runtime(api, module, FIXED, **environ):
            answers.append(api.invoke(body, headers))
    return answers


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "Once"}',
        b"null",
        b'"text"',
        b"[1, 2.5, -0.0, 1e300, 123456789012345678901234567890, true]",
        '{"ä": "é\\ud83d\\udc4d 👍"}'.encode(),
        b'{"a": {"b": [{"c": null}]}, "a": 1}',
        b"{}",
        b'{"do": "bytes"}',
        b'{"text": "' + b"x" * 300_000 + b'"}',
    ],
    ids=range(9),
)
@pytest.mark.parametrize("environment", ["", "AWS_Lambda_python3.13", "AWS_Lambda_python3.11"])
def test_the_same_event_gives_the_same_bytes_as_with_awslambdaric(
    body: bytes, environment: str
) -> None:
    ours, theirs = ask_both(body, AWS_EXECUTION_ENV=environment)
    assert ours.path == theirs.path == "/2018-06-01/runtime/invocation/request-1/response"
    assert ours.body == theirs.body
    assert ours.headers["content-type"] == theirs.headers["content-type"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"do": "raise", "message": "wrong: \xc3\xa4"}',
        b'{"do": "set"}',
        b"{not json",
        b"",
        b"\xff",
    ],
)
def test_the_same_error_is_reported_as_with_awslambdaric(body: bytes) -> None:
    ours, theirs = ask_both(body)
    assert ours.path == theirs.path == "/2018-06-01/runtime/invocation/request-1/error"
    mine, other = json.loads(ours.body), json.loads(theirs.body)
    assert (mine["errorType"], mine["requestId"]) == (other["errorType"], other["requestId"])
    assert mine["stackTrace"] == other["stackTrace"]
    if mine["errorType"] == "ValueError":
        assert mine == other
        causes = [json.loads(a.headers["lambda-runtime-function-xray-error-cause"])
                  for a in (ours, theirs)]  # fmt: skip
        assert causes[0] == causes[1]
    assert mine["errorMessage"].startswith(other["errorMessage"].partition(":")[0])
    assert ours.headers["content-type"] == theirs.headers["content-type"]


def test_the_context_is_that_of_awslambdaric() -> None:
    headers = {
        "Lambda-Runtime-Trace-Id": TRACE_ID,
        "Lambda-Runtime-Aws-Tenant-Id": "tenant",
        "Lambda-Runtime-Cognito-Identity": '{"cognitoIdentityId": "id-1"}',
    }
    ours, theirs = ask_both(b'{"do": "context"}', headers)
    assert ours.body == theirs.body
    found = json.loads(ours.body)
    assert found["trace"] == TRACE_ID
    assert found["invoked_function_arn"] == ARN
    assert found["remaining"] is True
    assert found["identity"] == "id-1"


@pytest.mark.parametrize(
    "client",
    [
        '{"custom": {"a": 1}, "env": {"locale": "en"}, "client": {"app_title": "t"}}',
        '{"custom": null}',
        '{"client": null, "w3c": {"traceparent": "00-1", "tracestate": 5, "other": "x"}}',
        '{"w3c": "none"}',
        "{}",
    ],
)
def test_the_client_context_is_that_of_awslambdaric(client: str) -> None:
    headers = {"Lambda-Runtime-Client-Context": client}
    ours, theirs = ask_both(b'{"do": "context"}', headers)
    assert ours.body == theirs.body
    assert json.loads(ours.body)["custom"] == json.loads(client).get("custom")


@pytest.mark.parametrize("header", ["Client-Context", "Cognito-Identity"])
@pytest.mark.parametrize("value", ["{", "[1]", '"text"'])
def test_an_invalid_context_header_is_an_error_of_the_event(header: str, value: str) -> None:
    with RuntimeApiServer() as api, runtime(api, OURS, FIXED):
        reply = api.invoke(b'{"do": "context"}', {f"Lambda-Runtime-{header}": value})
        assert reply.path.endswith("/error")
        assert json.loads(reply.body)["errorType"] == "Runtime.UnmarshalError"
        assert json.loads(api.invoke(b"1").body) == {"echo": 1}


def test_context_log_flushes_stdout(server: RuntimeApiServer) -> None:
    with runtime(server, OURS, FIXED) as process:
        assert json.loads(server.invoke(b'{"do": "log", "message": "logged\\n"}').body) is None
        assert process.stdout is not None
        assert process.stdout.readline() == "logged\n"  # before the process ends


@pytest.mark.parametrize("environment", ["", "AWS_Lambda_python3.13"])
@pytest.mark.parametrize(
    "texts", [["1.10", "1E+30", "-0"], ["NaN", "-NaN", "Infinity"], ["1" * 40, "0.1" + "3" * 40]]
)
def test_decimals_and_bytes_in_a_reply_are_those_of_awslambdaric(
    texts: list[str], environment: str
) -> None:
    event = json.dumps({"do": "decimals", "texts": texts}).encode()
    ours, theirs = ask_both(event, AWS_EXECUTION_ENV=environment)
    assert ours.path == theirs.path == "/2018-06-01/runtime/invocation/request-1/response"
    assert ours.body == theirs.body


def test_replies_and_errors_have_the_invocation_id() -> None:
    for body in (b"{}", b'{"do": "raise", "message": "x"}'):
        ours, theirs = ask_both(body, {"Lambda-Runtime-Invocation-Id": "delivery-9"})
        assert ours.headers["lambda-runtime-invocation-id"] == "delivery-9"
        assert theirs.headers["lambda-runtime-invocation-id"] == "delivery-9"


def test_one_process_handles_events_in_sequence_without_keeping_the_trace_id(
    server: RuntimeApiServer,
) -> None:
    with runtime(server, OURS, FIXED):
        for number in range(20):
            assert json.loads(server.invoke(b"%d" % number).body) == {"echo": number}
        traced = server.invoke(b'{"do": "context"}', {"Lambda-Runtime-Trace-Id": TRACE_ID})
        assert json.loads(traced.body)["trace"] == TRACE_ID
        assert json.loads(server.invoke(b'{"do": "context"}').body)["trace"] is None
        failed = server.invoke(b'{"do": "raise", "message": "once"}')
        assert json.loads(failed.body)["errorMessage"] == "once"
        assert json.loads(server.invoke(b'"still here"').body) == {"echo": "still here"}


def test_a_closed_connection_is_reopened(server: RuntimeApiServer) -> None:
    server.drop_connections = True
    with runtime(server, OURS, FIXED):
        for number in range(5):
            assert json.loads(server.invoke(b"%d" % number).body) == {"echo": number}


def test_errors_are_logged_with_type_and_stack_but_no_message(
    server: RuntimeApiServer,
) -> None:
    with runtime(server, OURS, FIXED) as process:
        server.invoke(b'{"do": "raise", "message": "a prompt not to be logged"}')
        process.terminate()
        out, err = process.communicate(timeout=20)
    assert "not to be logged" not in out + err
    line = json.loads(err.splitlines()[-1])
    assert (line["type"], line["request_id"]) == ("ValueError", "request-1")
    assert any("fixed_handler.py" in frame for frame in line["stack"])


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        ("tests.missing.handle", "Runtime.ImportModuleError"),
        ("tests.support.fixed_handler.missing", "Runtime.HandlerNotFound"),
    ],
)
def test_a_handler_that_cannot_be_loaded_is_an_init_error(
    server: RuntimeApiServer, handler: str, kind: str
) -> None:
    with runtime(server, OURS, handler) as process:
        reply = server.replies.get(timeout=20)
        assert process.wait(20) == 1
    assert reply.path == "/2018-06-01/runtime/init/error"
    assert reply.headers["lambda-runtime-function-error-type"] == kind
    assert json.loads(reply.body)["errorMessage"]


def test_an_invalid_setting_is_an_init_error_that_names_it(server: RuntimeApiServer) -> None:
    with runtime(server, OURS, "handler.app.lambda_handler", GPT2_THREADS="many") as process:
        reply = server.replies.get(timeout=20)
        assert process.wait(20) == 1
    assert reply.headers["lambda-runtime-function-error-type"] == "SettingsError"
    assert "GPT2_THREADS" in json.loads(reply.body)["errorMessage"]


def test_sys_exit_in_the_handler_ends_the_process(server: RuntimeApiServer) -> None:
    with runtime(server, OURS, FIXED) as process:
        server.events.put((b'{"do": "exit"}', {"Lambda-Runtime-Aws-Request-Id": "request-1"}))
        assert process.wait(20) == 3
    assert server.replies.empty()


def test_a_streamed_reply_arrives_in_chunks(server: RuntimeApiServer) -> None:
    with runtime(server, OURS, FIXED):
        reply = server.invoke(b'{"do": "stream", "chunks": ["Once ", "", "upon ", "a time"]}')
        assert json.loads(server.invoke(b"1").body) == {"echo": 1}
    assert reply.body == b"Once upon a time"
    assert reply.headers["lambda-runtime-function-response-mode"] == "streaming"
    assert reply.headers["content-type"] == "text/plain"
    assert reply.trailers == {}


@pytest.mark.parametrize("kind", ["RuntimeError", "OSError", "ConnectionError"])
def test_an_error_during_a_stream_is_sent_as_its_trailer(
    server: RuntimeApiServer, kind: str
) -> None:
    event = {"do": "stream", "chunks": ["Once "], "fail": "broke", "kind": kind}
    with runtime(server, OURS, FIXED):
        reply = server.invoke(json.dumps(event).encode())
        assert json.loads(server.invoke(b"1").body) == {"echo": 1}
    assert reply.body == b"Once "
    assert reply.trailers["Lambda-Runtime-Function-Error-Type"] == kind
    error = json.loads(b64decode(reply.trailers["Lambda-Runtime-Function-Error-Body"]))
    assert (error["errorType"], error["errorMessage"]) == (kind, "broke")


def test_a_chunk_of_the_wrong_type_is_an_error_of_the_stream(server: RuntimeApiServer) -> None:
    with runtime(server, OURS, FIXED):
        reply = server.invoke(b'{"do": "stream", "chunks": ["Once ", [5]]}')
        assert json.loads(server.invoke(b"1").body) == {"echo": 1}
    assert reply.body == b"Once "
    assert reply.trailers["Lambda-Runtime-Function-Error-Type"] == "TypeError"


def test_a_failed_send_closes_the_chunks() -> None:
    closed = []

    def chunks() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(1 << 16)
        finally:
            closed.append(True)

    def respond(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(1000)
        connection.close()  # with unread bytes, so that the next send fails

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=respond, args=(listener,))
        thread.start()
        api = RuntimeApi(f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(RuntimeApiError, match="could not be sent"):
            answer(api, Invocation("1", b"{}", {}), lambda *_: Streamed(chunks()))
        thread.join()
    assert closed == [True]


def test_snapstart_runs_the_hooks_around_the_snapshot(server: RuntimeApiServer) -> None:
    with runtime(server, OURS, FIXED, AWS_LAMBDA_INITIALIZATION_TYPE="snap-start"):
        calls = json.loads(server.invoke(b'{"do": "calls"}').body)
    assert server.restored.is_set()
    assert calls == ["before", "after"]


@pytest.mark.parametrize(
    ("hook", "path", "kind", "code"),
    [
        ("before", "/2018-06-01/runtime/init/error", "Runtime.BeforeSnapshotError", 64),
        ("after", "/2018-06-01/runtime/restore/error", "Runtime.AfterRestoreError", 65),
    ],
)
def test_a_hook_that_fails_is_reported_as_awslambdaric_does(
    server: RuntimeApiServer, hook: str, path: str, kind: str, code: int
) -> None:
    environ = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start", "FAIL": hook}
    with runtime(server, OURS, FIXED, **environ) as process:
        reply = server.replies.get(timeout=20)
        assert process.wait(20) == code
    assert reply.path == path
    assert reply.headers["lambda-runtime-function-error-type"] == kind
    assert server.restored.is_set() == (hook == "after")


def test_snapstart_opens_the_model_before_the_snapshot(server: RuntimeApiServer) -> None:
    environ = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}
    with runtime(server, OURS, "handler.app.lambda_handler", **environ):
        assert server.restored.wait(30)
        reply = json.loads(server.invoke(b'{"prompt": "Once", "max_new_tokens": 2}').body)
    opened_before = {phase: reply["timings_ms"][phase] for phase in ("process", "import", "map")}
    assert opened_before == {"process": 0, "import": 0, "map": 0}
    assert reply["cold_start"]
    assert reply["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("name", ["api-generate", "alb-generate", "direct-generate", "bad-json"])
def test_event_files_get_the_same_replies_as_with_awslambdaric(name: str) -> None:
    event = json.dumps(load_event(name)).encode()
    replies = []
    for module in (OURS, THEIRS):
        with RuntimeApiServer() as api, runtime(api, module, "handler.app.lambda_handler"):
            replies.append(json.loads(api.invoke(event).body))
    texts = [json.loads(r["body"]) if "body" in r else r for r in replies]
    for text in texts:
        text.pop("timings_ms", None)
    assert texts[0] == texts[1]


def test_the_runtime_imports_no_heavy_module() -> None:
    code = "import sys, handler.runtime.loop\nprint(*sorted(sys.modules))"
    command = [sys.executable, "-S", "-c", code]
    environ = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    heavy = {"http.client", "socket", "ssl", "logging", "traceback", "selectors", "email", "numpy"}
    assert heavy.isdisjoint(done.stdout.split())


@pytest.mark.parametrize("address", ["", "127.0.0.1", "host:port"])
def test_an_invalid_address_is_rejected(address: str) -> None:
    with pytest.raises(RuntimeApiError, match="not host:port"):
        RuntimeApi(address)


def test_a_refused_connection_is_reported() -> None:
    (port,) = free_ports(1)
    with pytest.raises(RuntimeApiError, match="invocation/next failed"):
        RuntimeApi(f"127.0.0.1:{port}").next()


def test_the_runtime_exits_with_0_when_the_emulator_ends(
    server: RuntimeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(RuntimeApi):
        def next(self) -> Invocation:
            if not events:
                raise RuntimeApiError("gone") from ConnectionRefusedError()
            return events.pop()

    events = [Invocation("1", b'{"do": "calls"}', {})]
    answered: list[bytes] = []
    api = Ending(server.address)
    monkeypatch.setattr(api, "respond", lambda _invocation, body, _type: answered.append(body))
    assert loop.run(api, FIXED) == 0
    assert len(answered) == 1
    with pytest.raises(RuntimeApiError, match="gone"):
        loop.run(api, FIXED)


def test_a_response_that_is_not_http_is_rejected() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def respond() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-nonsense\r\n\r\n")

    thread = threading.Thread(target=respond, daemon=True)
    thread.start()
    with pytest.raises(RuntimeApiError, match="is not an HTTP response"):
        RuntimeApi(f"127.0.0.1:{listener.getsockname()[1]}").next()
    thread.join()
    listener.close()


def test_an_endless_header_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_api, "MAX_HEADER_BYTES", 100)
    api = RuntimeApi("127.0.0.1:1")
    monkeypatch.setattr(RuntimeApi, "_more", lambda self: b"x" * 60)
    with pytest.raises(RuntimeApiError, match="header exceeds"):
        api._until(b"\r\n")


@pytest.fixture
def local() -> Iterator[str]:
    """The entry point of the image without a Runtime API."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "handler.runtime"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PORT": str(port), "GPT2_MODEL_DIR": str(DEMO)},
    )
    wait_for(port, process)
    yield f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert process.stderr
    process.stderr.close()


def post(url: str, body: bytes) -> tuple[int, Any]:
    try:
        with urlopen(Request(url, body), timeout=30) as reply:
            return reply.status, json.load(reply)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_without_a_runtime_api_streams_are_buffered() -> None:
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "handler.runtime", FIXED],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "PORT": str(port)},
    )
    try:
        wait_for(port, process)
        url = f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"
        assert post(url, b'{"do": "stream", "chunks": ["[1", ", 2]"]}') == (200, [1, 2])
        broken = post(url, b'{"do": "stream", "chunks": ["[1"], "fail": "broke"}')[1]
        assert (broken["errorType"], broken["errorMessage"]) == ("RuntimeError", "broke")
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_without_a_runtime_api_the_invocations_path_is_served(local: str) -> None:
    status, reply = post(local, b'{"prompt": "Once upon a time", "max_new_tokens": 3}')
    assert status == 200
    assert reply["usage"]["completion_tokens"] == 3
    status, reply = post(local, b"{not json")
    assert (status, reply["errorType"]) == (200, "Runtime.UnmarshalError")
    status, reply = post(local, json.dumps(load_event("unsupported-sns")).encode())
    assert (status, reply["errorType"]) == (200, "UnsupportedEvent")
    assert post(local.replace("function/", "other/"), b"{}")[0] == 404
    assert post(local, b"x" * (6 * 1024 * 1024 + 1))[0] == 413
