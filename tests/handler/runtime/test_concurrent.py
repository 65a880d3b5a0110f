"""Concurrent events: polling threads with a test Runtime API."""

import json
from collections.abc import Iterator

import pytest

from gpt2core import Engine
from handler.runtime import concurrent
from handler.runtime.api import Invocation, RuntimeApiError
from tests.support.runtime_api_server import OURS, TRACE_ID, RuntimeApiServer, runtime

FIXED = "tests.support.fixed_handler.handle"
FOUR = {"AWS_LAMBDA_MAX_CONCURRENCY": "4"}


@pytest.fixture
def server() -> Iterator[RuntimeApiServer]:
    with RuntimeApiServer() as api:
        yield api
        for _ in range(7):  # the other threads are waiting for events
            api.events.put(None)


def replies(server: RuntimeApiServer, bodies: list[bytes]) -> dict[str, bytes]:
    """The replies to events that are sent together, by the number of the request."""
    for body in bodies:
        server.send(body)
    found = [server.replies.get(timeout=60) for _ in bodies]
    assert all(reply.path.endswith("/response") for reply in found)
    return {reply.path.split("/")[4].removeprefix("request-"): reply.body for reply in found}


def test_events_run_concurrently_up_to_the_setting(
    server: RuntimeApiServer,
) -> None:
    """Each event waits until there are four, so three polls would not be enough."""
    with runtime(server, OURS, FIXED, **FOUR):
        bodies = [json.dumps({"do": "together", "number": i}).encode() for i in range(1, 9)]
        found = replies(server, bodies)
    assert found == {str(i): str(i).encode() for i in range(1, 9)}


@pytest.mark.parametrize("count", ["", "1", "0", "many"])
def test_one_event_at_a_time_without_the_setting(server: RuntimeApiServer, count: str) -> None:
    with runtime(server, OURS, FIXED, AWS_LAMBDA_MAX_CONCURRENCY=count):
        assert json.loads(server.invoke(b'{"do": "calls"}').body) == []


def test_the_handlers_module_is_notified_of_concurrency(server: RuntimeApiServer) -> None:
    with runtime(server, OURS, FIXED, **FOUR):
        assert json.loads(server.invoke(b'{"do": "calls"}').body) == ["concurrency"]


def test_concurrent_events_do_not_share_trace_ids(server: RuntimeApiServer) -> None:
    headers = {"Lambda-Runtime-Trace-Id": TRACE_ID}
    with runtime(server, OURS, FIXED, **FOUR):
        assert json.loads(server.invoke(b'{"do": "context"}', headers).body)["trace"] is None


def test_eight_concurrent_prompts_get_the_same_texts_as_alone(
    server: RuntimeApiServer, demo: Engine
) -> None:
    prompts = ["Once upon a time", "The fox", "A king", "There was", "She", "He", "It", "When"]
    bodies = [json.dumps({"prompt": p, "max_new_tokens": 20}).encode() for p in prompts]
    with runtime(server, OURS, "handler.app.lambda_handler", AWS_LAMBDA_MAX_CONCURRENCY="8"):
        found = replies(server, bodies)
    for i, prompt in enumerate(prompts, 1):
        assert json.loads(found[str(i)])["generated_text"] == demo.generate(prompt, 20).text


def test_a_failed_reply_is_logged_and_the_next_event_is_processed(
    server: RuntimeApiServer,
) -> None:
    server.failing_replies = 1
    with runtime(server, OURS, FIXED, AWS_LAMBDA_MAX_CONCURRENCY="2") as process:
        assert server.invoke(b"1").body == b'{"echo": 1}'
        assert server.invoke(b"2").body == b'{"echo": 2}'
        assert process.stderr is not None
        assert "Runtime.ReplyFailed" in process.stderr.readline()  # before the process ends
        assert process.poll() is None


class Stop(Exception):
    """Ends the endless loop."""


def test_next_is_retried_with_increasing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [*[RuntimeApiError("no")] * 9, Invocation("r", b"1", {}), RuntimeApiError("no")]
    pauses: list[float] = []

    class Api:
        def __init__(self, address: str) -> None: ...

        def next(self) -> Invocation:
            if not outcomes:
                raise Stop
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        def respond(self, *reply: object) -> None: ...

    monkeypatch.setattr(concurrent, "RuntimeApi", Api)
    with pytest.raises(Stop):
        concurrent._poll("", lambda event, context: event, pauses.append)
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 0.05]
