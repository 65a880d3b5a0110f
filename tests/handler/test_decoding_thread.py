"""Concurrent requests share passes over the weights in one decoding thread."""

import http.client
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gpt2core import Engine, scheduler
from gpt2core.errors import CheckpointError
from gpt2core.generation import Generation, Prompt, Token
from gpt2core.sampling import Sampling
from handler import app, server
from handler.app import Function
from handler.decoding_thread import DecodingThread
from handler.dialects.native import DIALECT as NATIVE
from handler.dialects.request import Request
from handler.errors import Cancelled
from handler.generation import complete, stream
from handler.settings import Settings
from handler.telemetry import Timings
from tests.support.forward import intercept
from tests.support.until import until

TIMEOUT = 60  # an upper limit; no test waits for it to expire


def request(prompt: str, max_new_tokens: int = 5) -> Request:
    return Request(NATIVE, (prompt,), False, max_new_tokens=max_new_tokens)


class Gate:
    """Blocks every pass over the weights until it is permitted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sequences: list[int] = []
        """How many sequences entered each pass."""
        self.fail: BaseException | None = None
        """What the passes raise from now on, once."""
        self._started = threading.Semaphore(0)
        self._allowed = threading.Semaphore(0)

        def gated(sequences: Any) -> None:
            self.sequences.append(len(sequences))
            self._started.release()
            assert self._allowed.acquire(timeout=TIMEOUT)
            failure, self.fail = self.fail, None
            if failure:
                raise failure

        intercept(monkeypatch, gated)

    def wait(self) -> None:
        """Wait until one more pass has started."""
        assert self._started.acquire(timeout=TIMEOUT)

    def permit(self, passes: int) -> None:
        """Permit this many passes."""
        self._allowed.release(passes)

    def open(self) -> None:
        """Permit all passes."""
        self.permit(10_000)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


def decode(thread: DecodingThread, ids: list[int], **options: Any) -> Any:
    """Decode one prompt; returns its end."""
    return list(thread.decode([Prompt(0, ids, 9)], **options))[-1][2]


def test_prompts_of_several_threads_share_passes_and_each_gets_its_own_ids(
    engine: Engine, gate: Gate
) -> None:
    thread = DecodingThread(engine)
    with ThreadPoolExecutor(8) as callers:
        first = callers.submit(decode, thread, [0])
        gate.wait()  # the others arrive during this pass
        others = [thread.decode([Prompt(0, [i], 9)]) for i in range(1, 8)]
        started = [callers.submit(next, events) for events in others]
        until(lambda: thread._submitted.qsize() == 7)
        gate.open()
        for i, (one, events) in enumerate(zip(started, others, strict=True), 1):
            one.result(TIMEOUT)
            *_, (_, _, end) = events
            assert isinstance(end, Generation)
            assert end.ids == engine.generate_ids([i], 9)
        assert first.result(TIMEOUT).ids == engine.generate_ids([0], 9)
    assert gate.sequences[:2] == [1, 8]


def test_python_threads_hand_over_the_gil_after_half_a_millisecond(engine: Engine) -> None:
    default = sys.getswitchinterval()
    try:
        DecodingThread(engine)
        assert sys.getswitchinterval() == pytest.approx(0.0005)
    finally:
        sys.setswitchinterval(default)


def test_cancelling_a_caller_does_not_affect_the_others(engine: Engine, gate: Gate) -> None:
    thread = DecodingThread(engine)
    gone = threading.Event()
    with ThreadPoolExecutor(2) as callers:
        leaves = callers.submit(decode, thread, [1], is_cancelled=gone.is_set)
        stays = callers.submit(decode, thread, [2])
        gate.wait()
        gone.set()
        gate.open()
        with pytest.raises(Cancelled):
            leaves.result(TIMEOUT)
        assert stays.result(TIMEOUT).ids == engine.generate_ids([2], 9)
    assert len(thread._scheduler) == 0


def test_a_failed_import_for_sampling_ends_only_its_own_request(
    engine: Engine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = DecodingThread(engine)
    monkeypatch.setitem(sys.modules, "gpt2core.sampler", None)
    sampled = Request(NATIVE, ("a",), False, max_new_tokens=2, sampling=Sampling(temperature=1.0))
    with ThreadPoolExecutor(1) as callers:
        stays = callers.submit(decode, thread, [2])
        gate.wait()
        with pytest.raises(ImportError):
            complete(engine, Settings(), sampled, None, Timings(), thread.decode)
        gate.open()
        assert stays.result(TIMEOUT).ids == engine.generate_ids([2], 9)


@pytest.mark.parametrize("failure", [MemoryError("none left"), CheckpointError("changed")])
def test_a_failed_pass_fails_all_active_requests_but_not_the_next(
    engine: Engine, gate: Gate, failure: Exception
) -> None:
    thread = DecodingThread(engine)
    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(decode, thread, [1])
        gate.wait()
        second = callers.submit(decode, thread, [2])
        until(thread._submitted.qsize)
        gate.permit(1)  # then both are in the next pass
        gate.wait()
        gate.fail = failure
        gate.open()
        assert [one.exception(TIMEOUT) for one in (first, second)] == [failure, failure]
    assert decode(thread, [3]).ids == engine.generate_ids([3], 9)


def test_a_stream_has_the_phases_of_its_passes_however_late_the_caller_reads_it(
    engine: Engine,
) -> None:
    asked = request("Once")._replace(n=2)
    ends = [
        Generation("a", [0], 1, "length", 2.0, 14.0),
        Generation("b", [0], 1, "length", 3.0, 14.5),
    ]
    events: list[Any] = [(0, [Token(0, "a")], None), (0, [], ends[0]), (1, [], ends[1])]
    timings = Timings()
    read = stream(engine, Settings(), asked, None, timings, lambda prompts: iter(events))
    for _ in read:  # the thread has finished before the first event is read
        timings.skip()
    measured = timings.finished()
    assert (measured["prefill"], measured["decode"]) == (2000, 15500)
    whole = Timings()
    complete(engine, Settings(), asked, None, whole, lambda prompts: iter(events))
    assert all(whole.finished()[phase] == measured[phase] for phase in ("prefill", "decode"))


def test_the_phases_of_a_shared_stream_are_at_most_its_total(engine: Engine) -> None:
    thread, timings = DecodingThread(engine), Timings()
    for _ in stream(engine, Settings(), request("Once", 20), None, timings, thread.decode):
        timings.skip()
    measured = timings.finished()
    assert measured["prefill"] > 0
    assert measured["decode"] > 0
    # Every figure is rounded to 0.1 ms.
    assert measured["prefill"] + measured["decode"] <= measured["total"] + 0.15


@pytest.fixture
def send(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., http.client.HTTPConnection]]:
    """A function that sends a prompt to a local server with at most two active requests."""
    function = Function(Settings(model_dir=str(model_dir), max_waiting=2))
    function.is_concurrent = True
    monkeypatch.setattr(app, "function", function)
    with server.Server(0) as local, ExitStack() as connections:
        threading.Thread(target=local.serve_forever, daemon=True).start()

        def send(prompt: str, max_new_tokens: int = 9) -> http.client.HTTPConnection:
            connection = http.client.HTTPConnection("127.0.0.1", local.server_port, timeout=TIMEOUT)
            body = json.dumps({"prompt": prompt, "max_new_tokens": max_new_tokens})
            connections.callback(connection.close)
            connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
            return connection

        yield send
        local.shutdown()


def test_a_request_over_the_limit_is_a_429_with_retry_after(send: Any, gate: Gate) -> None:
    waiting = [send("a")]
    gate.wait()
    waiting.append(send("b"))
    until(lambda: app.function.active_requests == 2)
    rejected = send("c").getresponse()
    assert (rejected.status, rejected.headers["Retry-After"]) == (429, "1")
    error = json.loads(rejected.read())["error"]
    assert error["type"] == "TooManyRequests"
    assert "2" in error["message"]
    gate.open()
    assert [connection.getresponse().status for connection in waiting] == [200, 200]
    assert send("c").getresponse().status == 200


def test_the_sequence_of_a_disconnected_client_is_cancelled(
    send: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = threading.Event()
    cancel = scheduler.Scheduler.cancel

    def watched(self: Any, key: Any) -> Any:
        done = cancel(self, key)
        cancelled.set()
        return done

    monkeypatch.setattr(scheduler.Scheduler, "cancel", watched)
    leaves = send("a", 60)
    gate.wait()
    leaves.sock.shutdown(socket.SHUT_RDWR)
    leaves.close()
    gate.open()
    assert cancelled.wait(TIMEOUT)
    assert send("b").getresponse().status == 200
    assert app.function.decoding_thread is not None
    assert len(app.function.decoding_thread._scheduler) == 0


def test_eight_concurrent_requests_get_the_same_texts_as_alone(
    send: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.function, "settings", app.function.settings._replace(max_waiting=8))
    prompts = [f"{i} tales" for i in range(8)]
    with ThreadPoolExecutor(8) as clients:
        replies = list(clients.map(lambda prompt: send(prompt, 30).getresponse().read(), prompts))
    texts = [json.loads(reply)["generated_text"] for reply in replies]
    assert texts == [engine.generate(prompt, 30).text for prompt in prompts]
