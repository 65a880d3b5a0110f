"""`Function.invoke` from event to reply, with real models and the event files."""

import json
import shutil
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gpt2core.errors import CheckpointError
from handler import app, invoke, telemetry
from handler.app import Function
from handler.batch import request_batch
from handler.dialects.native import Native
from handler.errors import InternalError, ModelUnavailable, UnsupportedEvent
from handler.runtime.payload import encoded
from handler.settings import Settings
from handler.telemetry import PHASES, Timings
from tests.conftest import DEMO
from tests.support.clock import Clock
from tests.support.events import Context, event_names, http_event, load_event, payload
from tests.support.models import small_config, write_model

GOOD = [
    name
    for name in event_names("alb", "api", "direct", "rest", "schedule", "url")
    if name != "direct-populate"
]
BAD = {
    "bad-json": (400, "BadRequest", "body"),
    "bad-not-utf8": (400, "BadRequest", "body"),
    "bad-empty-body": (400, "BadRequest", "body"),
    "bad-base64": (400, "BadRequest", "body"),
    "bad-unknown-field": (400, "BadRequest", "num_beams"),
    "bad-stream": (400, "BadRequest", "stream"),
    "bad-huggingface-sampling": (400, "BadRequest", "parameters.typical_p"),
    "bad-prompt-type": (400, "BadRequest", "prompt"),
    "bad-route": (404, "RouteNotFound", None),
    "bad-method": (405, "MethodNotAllowed", None),
    "bad-content-type": (415, "UnsupportedContentType", None),
    "bad-max-new-tokens": (422, "LimitExceeded", "max_new_tokens"),
    "bad-prompt-too-long": (422, "PromptTooLong", "prompt"),
    "bad-direct-type": (400, "BadRequest", "max_new_tokens"),
    "bad-direct-surrogate": (400, "InvalidPrompt", "prompt"),
    "direct-populate": (400, "BadRequest", "GPT2_MODEL_URI"),  # the demo has no URI to download
}


@pytest.fixture(scope="module")
def function() -> Function:
    return Function(Settings())


@pytest.fixture
def small(model_dir: Path) -> Function:
    return Function(Settings(model_dir=str(model_dir), model_dir_named=True))


def check_http(reply: dict[str, Any], *, alb: bool = False, multi: bool = False) -> None:
    headers = reply["multiValueHeaders" if multi else "headers"]
    assert set(reply) == {
        "statusCode",
        "body",
        "isBase64Encoded",
        "multiValueHeaders" if multi else "headers",
        *(["statusDescription"] if alb else []),
    }
    assert type(reply["statusCode"]) is int
    assert reply["isBase64Encoded"] is False
    assert json.loads(reply["body"]) is not None
    values = {k: v[0] if multi else v for k, v in headers.items()}
    assert values["Content-Type"] == "application/json"
    assert values["x-cold-start"] in ("true", "false")
    assert [part.split(";")[0] for part in values["Server-Timing"].split(", ")] == list(PHASES)


@pytest.mark.parametrize("name", GOOD)
def test_every_valid_event_gets_a_reply_in_the_format_of_its_source(
    function: Function, name: str
) -> None:
    reply = function.invoke(load_event(name), Context())
    if name.split("-")[0] in ("direct", "schedule"):
        body = reply
    else:
        check_http(reply, alb=name.startswith("alb"), multi=name.endswith("multi-value"))
        assert reply["statusCode"] == 200
        body = payload(reply)
    if "huggingface" in name:
        assert [set(item) for item in body] == [{"generated_text", "details"}]
        assert body[0]["generated_text"].startswith("The princess went into the forest and")
        return
    assert list(body["timings_ms"]) == list(PHASES)
    if "health" in name:
        assert body["status"] == "ok"
    elif name in ("direct-warmup", "schedule"):
        assert body["status"] == "warm"
    elif "prompts" in name:
        assert [g["usage"]["completion_tokens"] for g in body["generations"]] == [12, 12]
    else:
        assert body["usage"]["completion_tokens"] > 0
        assert body["finish_reason"] in ("length", "stop")
        assert body["model"] == "demo"


@pytest.mark.parametrize("name", BAD)
def test_every_invalid_event_gets_an_error_with_status_type_and_field(
    function: Function, name: str
) -> None:
    status, kind, param = BAD[name]
    reply = function.invoke(load_event(name), Context())
    error = payload(reply)["error"]
    if "huggingface" in name:
        assert payload(reply)["error_type"] == "validation"
        assert error.startswith(param)
    else:
        assert (error["type"], error["param"]) == (kind, param)
        assert error["message"]
    if "direct" not in name:
        check_http(reply, alb="content-type" in name)
        assert reply["statusCode"] == status


def test_every_event_file_is_tested() -> None:
    assert {*event_names()} == {*GOOD, *BAD, *event_names("batch", "unsupported")}


@pytest.mark.parametrize("name", event_names("unsupported"))
def test_an_unsupported_event_raises_an_error(function: Function, name: str) -> None:
    with pytest.raises(UnsupportedEvent, match="supported"):
        function.invoke(load_event(name), Context())


def test_the_405_reply_lists_the_allowed_methods(function: Function) -> None:
    assert function.invoke(load_event("bad-method"))["headers"]["Allow"] == "POST"


def test_the_native_reply_has_exactly_its_fields(small: Function) -> None:
    reply = small.invoke({"prompt": "abc", "max_new_tokens": 3, "id": {"any": [1, None]}})
    assert set(reply) == {
        "generated_text",
        "finish_reason",
        "usage",
        "timings_ms",
        "cold_start",
        "model",
        "model_source",
        "id",
    }
    assert reply["usage"] == {"prompt_tokens": 3, "completion_tokens": 3}
    assert reply["id"] == {"any": [1, None]}
    assert "id" not in small.invoke({"prompt": "abc"})


def test_an_invoke_that_opens_the_model_logs_its_phases(
    model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    function = Function(Settings(model_dir=str(model_dir), model_dir_named=True))
    function.invoke(load_event("url-health"), Context())
    assert json.loads(capsys.readouterr().err)["model"] is None
    reply = function.invoke({"prompt": "a secret", "max_new_tokens": 2}, Context())
    (line,) = capsys.readouterr().err.splitlines()
    assert "a secret" not in line
    logged = json.loads(line)
    assert logged["message"] == "cold start"
    assert logged["timings_ms"] == reply["timings_ms"]
    assert (logged["model_source"], logged["request_id"]) == ("volume", Context.aws_request_id)
    function.invoke({"prompt": "b"}, Context())
    assert json.loads(capsys.readouterr().err)["message"] == "invoke"


def test_the_log_line_of_an_invoke_contains_its_metrics(
    small: Function, capsys: pytest.CaptureFixture[str]
) -> None:
    small.invoke({"prompt": ["abc", "d"], "max_new_tokens": 4}, Context())
    line = json.loads(capsys.readouterr().err)
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert abs(line["_aws"]["Timestamp"] / 1000 - time.time()) < 60
    assert directive["Dimensions"] == [["FunctionName"]]
    named = {metric["Name"]: line[metric["Name"]] for metric in directive["Metrics"]}
    duration = named.pop("Duration")
    assert duration == line["timings_ms"]["total"]
    expected = {"Requests": 1, "Errors": 0, "PromptTokens": 4, "CompletionTokens": 8}
    assert named == expected | {"ColdStarts": 1}
    assert (line["FunctionName"], line["Source"]) == (Context.function_name, "direct")


def test_metrics_outside_of_lambda_have_the_function_name_local(
    small: Function, capsys: pytest.CaptureFixture[str]
) -> None:
    small.invoke({"prompt": "abc", "max_new_tokens": 1})
    assert json.loads(capsys.readouterr().err)["FunctionName"] == "local"


def test_return_full_text_prepends_the_prompt(small: Function) -> None:
    alone = small.invoke({"prompt": "abc", "max_new_tokens": 5})["generated_text"]
    full = small.invoke({"prompt": "abc", "max_new_tokens": 5, "return_full_text": True})
    assert full["generated_text"] == "abc" + alone


def test_hugging_face_returns_the_full_text_by_default(small: Function) -> None:
    full = small.invoke({"inputs": "abc"})
    part = small.invoke({"inputs": "abc", "parameters": {"return_full_text": False}})
    assert full == [{"generated_text": "abc" + part[0]["generated_text"]}]
    assert [len(small.invoke({"inputs": ["a", "b"]}))] == [2]


@pytest.mark.parametrize(("allow", "tokens"), [({}, 2), ({"allow_special": False}, 14)])
def test_special_tokens_in_a_prompt_are_recognized_unless_disabled(
    small: Function, allow: dict[str, bool], tokens: int
) -> None:
    native = small.invoke({"prompt": "a<|endoftext|>", "max_new_tokens": 1} | allow)
    assert native["usage"]["prompt_tokens"] == tokens
    parameters = {"max_new_tokens": 64 - tokens, "details": True} | allow
    details = small.invoke({"inputs": "a<|endoftext|>", "parameters": parameters})[0]["details"]
    assert details["generated_tokens"] == 64 - tokens


def test_allow_special_must_be_a_boolean(small: Function) -> None:
    error = small.invoke({"prompt": "a", "allow_special": 1})["error"]
    assert (error["type"], error["param"]) == ("BadRequest", "allow_special")
    reply = small.invoke({"inputs": "a", "parameters": {"allow_special": "no"}})
    assert reply["error"].startswith("parameters.allow_special ")
    assert reply["error_type"] == "validation"


def test_hugging_face_details_have_finish_reason_and_token_count(small: Function) -> None:
    parameters = {"max_new_tokens": 4, "details": True}
    details = small.invoke({"inputs": "abc", "parameters": parameters})[0]["details"]
    assert details == {"finish_reason": "length", "generated_tokens": 4}


def test_the_first_reply_is_a_cold_start_with_its_phases_and_the_second_is_not(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "perf_counter", count(step=0.001).__next__)
    function = Function(Settings(model_dir=str(model_dir)))
    function.init_timings = Timings()
    function.init_timings.add("process", 0.5)
    function.init_timings.add("import", 0.25)
    first, second = function.invoke({"prompt": "abc"}), function.invoke({"prompt": "abc"})
    assert (first["cold_start"], second["cold_start"]) == (True, False)
    timings = first["timings_ms"]
    assert timings["process"] == 500
    assert timings["import"] >= 250
    assert all(timings[phase] > 0 for phase in ("map", "tokenizer", "prefill", "decode"))
    # prefill and decode are measured in gpt2core, with the real clock
    parts = sum(timings[p] for p in ("process", "import", "source", "map", "tokenizer"))
    assert 750 < parts <= timings["total"]
    warm = second["timings_ms"]
    # prefill may take less than 0.05 ms, which rounds to 0
    assert {p for p, ms in warm.items() if ms} - {"prefill"} == {"decode", "total"}


def test_the_first_generation_after_a_health_check_is_a_cold_start(model_dir: Path) -> None:
    function = Function(Settings(model_dir=str(model_dir)))
    health = [payload(function.invoke(load_event("url-health"))) for _ in range(2)]
    assert [(h["cold_start"], h["model"]) for h in health] == [(True, None), (False, None)]
    assert function.invoke({"prompt": "abc"})["cold_start"] is True
    assert payload(function.invoke(load_event("url-health")))["model"] == model_dir.name


def test_the_engine_is_opened_once_and_kept(small: Function) -> None:
    small.invoke({"prompt": "abc"})
    engine = small.model.engine
    small.invoke({"prompt": "abc"})
    assert engine is not None
    assert small.model.engine is engine


def test_the_text_ends_when_the_remaining_time_does(small: Function) -> None:
    reply = small.invoke({"prompt": "abc", "max_new_tokens": 9}, Context(remaining_ms=1))
    assert (reply["finish_reason"], reply["generated_text"]) == ("deadline", "")
    reply = small.invoke({"prompt": ["a", "b"]}, Context(remaining_ms=1))
    assert [g["finish_reason"] for g in reply["generations"]] == ["deadline", "deadline"]


def test_a_model_without_a_beginning_of_text_token_warms_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "perf_counter", count(step=0.001).__next__)
    config = small_config(bos_token_id=None, eos_token_id=None)
    function = Function(Settings(model_dir=str(write_model(tmp_path / "model", config))))
    assert function.invoke({"warmup": True})["status"] == "warm"
    assert function.invoke(load_event("schedule"))["timings_ms"]["prefill"] > 0


def test_lone_surrogates_are_escaped_in_error_messages(small: Function) -> None:
    for method, path in (("\udfff", "/"), ("POST", "/\ud800")):
        reply = small.invoke(http_event("{}", source="rest", method=method, path=path))
        assert 400 <= reply["statusCode"] < 500
        assert reply["body"].isascii()


def test_a_huge_number_is_rejected_and_not_repeated(small: Function) -> None:
    error = small.invoke({"prompt": "abc", "max_new_tokens": 10**5000})["error"]
    assert error["type"] == "LimitExceeded"
    assert len(error["message"]) < 200


def test_requests_over_the_limits_are_rejected_instead_of_clamped(model_dir: Path) -> None:
    settings = Settings(model_dir=str(model_dir), max_new_tokens=5, max_prompt_tokens=4)
    function = Function(settings)
    assert function.invoke({"prompt": "abcd"})["usage"]["completion_tokens"] == 5
    error = function.invoke({"prompt": "abcd", "max_new_tokens": 6})["error"]
    assert (error["type"], error["param"]) == ("LimitExceeded", "max_new_tokens")
    error = function.invoke({"prompt": ["a", "abcde"]})["error"]
    assert (error["type"], error["param"]) == ("PromptTooLong", "prompt[1]")
    assert "the limit is 4" in function.invoke({"inputs": "abcde"})["error"]
    larger = Function(Settings(model_dir=str(model_dir), max_new_tokens=5000))
    error = larger.invoke({"prompt": "abcd", "max_new_tokens": 65})["error"]
    assert (
        "the limit is 64 (the model's context)" in error["message"]
    )  # the context is still a limit
    assert "the limit is 4" in function.invoke({"prompt": "a" * 100})["error"]["message"]


def test_a_missing_model_is_a_503_and_not_replaced_by_the_demo(tmp_path: Path) -> None:
    function = Function(Settings(model_dir=str(tmp_path), model_dir_named=True))
    reply = function.invoke(load_event("url-generate"))
    assert reply["statusCode"] == 503
    assert payload(reply)["error"]["type"] == "ModelUnavailable"
    assert str(tmp_path) in payload(reply)["error"]["message"]


def test_a_model_that_appears_later_is_opened_by_the_next_invoke(
    tmp_path: Path, model_dir: Path
) -> None:
    function = Function(Settings(model_dir=str(tmp_path / "model"), model_dir_named=True))
    assert "error" in function.invoke({"prompt": "abc"})
    shutil.copytree(model_dir, tmp_path / "model")
    assert "generated_text" in function.invoke({"prompt": "abc"})


def test_a_failed_schedule_raises_so_that_it_is_retried(tmp_path: Path) -> None:
    function = Function(Settings(model_dir=str(tmp_path), model_dir_named=True))
    with pytest.raises(ModelUnavailable):
        function.invoke(load_event("schedule"))


def test_an_invalid_checkpoint_is_a_503_and_one_log_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"broken")
    function = Function(Settings(model_dir=str(folder), model_dir_named=True))
    reply = function.invoke(load_event("url-generate"), Context())
    assert reply["statusCode"] == 503
    logged, invoke = map(json.loads, capsys.readouterr().err.splitlines())
    assert (invoke["error"], invoke["Errors"]) == (CheckpointError.__name__, 1)
    assert logged["type"] == CheckpointError.__name__
    assert logged["request_id"] == Context.aws_request_id


def test_an_internal_error_is_a_500_whose_log_has_the_stack_but_no_prompt(
    small: Function, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("broke on a secret prompt")

    monkeypatch.setattr(Native, "render", broken)
    event = load_event("url-generate")
    event["body"] = '{"prompt": "a secret prompt", "max_new_tokens": 1}'
    reply = small.invoke(event, Context())
    assert reply["statusCode"] == 500
    assert payload(reply)["error"]["type"] == "InternalError"
    log = capsys.readouterr().err
    assert "secret" not in log + reply["body"]
    error, start = map(json.loads, log.splitlines())
    assert (start["message"], start["error"]) == ("cold start", "RuntimeError")
    assert error["type"] == "RuntimeError"
    assert any("test_app.py" in frame for frame in error["stack"])


def test_each_request_is_one_log_line_without_its_text(
    small: Function, capsys: pytest.CaptureFixture[str]
) -> None:
    small.invoke({"prompt": "secret", "stop": "secret"})
    small.invoke({"prompt": 5, "id": "secret"})
    small.invoke({"prompt": "a", "secret": "secret"})
    small.invoke({"inputs": "a", "parameters": {"a secret": 1}})
    small.invoke(http_event(path="/secret", method="SECRET", body="secret"))
    out, err = capsys.readouterr()
    assert "secret" not in out + err
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["error"] for line in lines] == [
        None,
        *["BadRequest"] * 3,
        "RouteNotFound",
    ]


@pytest.mark.parametrize(
    ("name", "characters", "status"),
    [
        ("url-generate", "x" * 1_048_576, 200),
        ("alb-generate", "x" * 1_048_576, 413),
        ("url-generate", "\x01" * 500_000, 200),
        ("url-generate", "\x01" * 900_000, 413),
        ("rest-generate", "\\" * 1_600_000, 413),
        ("api-generate", "\U0001f600" * 600_000, 413),
        ("direct-generate", "\x01" * 1_000_000, 200),
        ("direct-generate", "\x01" * 1_100_000, 413),
    ],
)
def test_the_size_limit_applies_to_the_posted_reply(
    small: Function,
    name: str,
    characters: str,
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fields = {"prompt": "a", "max_new_tokens": 1, "id": characters}
    event = fields if "direct" in name else load_event(name) | {"body": json.dumps(fields)}
    reply = small.invoke(event, Context())
    logged = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert len(encoded(reply)[0]) <= (1 << 20 if "alb" in name else 6 << 20)
    if status == 200:
        assert payload(reply)["id"] == characters
        assert (logged["Errors"], logged["error"]) == (0, None)
    else:
        assert reply.get("statusCode", status) == status
        assert payload(reply)["error"]["type"] == "BodyTooLarge"
        assert (logged["Errors"], logged["error"]) == (1, "BodyTooLarge")


def test_the_size_limit_counts_utf8_if_the_runtime_posts_utf8(
    small: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EXECUTION_ENV", "AWS_Lambda_python3.13")
    fields = {"prompt": "a", "max_new_tokens": 1, "id": "\U0001f600" * 600_000}
    assert (
        small.invoke(load_event("api-generate") | {"body": json.dumps(fields)})["statusCode"] == 200
    )


def decoding(model_dir: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """A function and a clock: only passes take time, a second each."""
    one_by_one = Settings(model_dir=str(model_dir), prompt_lookup=False, **settings)
    function = Function(one_by_one)
    function.model.open(Timings())
    clock = Clock(monkeypatch, 1.0)
    for module in (app, invoke, request_batch):
        monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    return function, clock


@pytest.mark.parametrize(
    ("source", "timeout", "seconds"),
    [
        ("api", None, 30),
        ("rest", None, 29),
        ("alb", None, 60),
        ("url", None, None),
        ("api", 10, 10),
        ("url", 10, 10),
    ],
)
def test_the_partial_text_is_returned_before_the_gateway_times_out(
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    timeout: int | None,
    seconds: int | None,
) -> None:
    function, clock = decoding(model_dir, monkeypatch, http_timeout=timeout)
    began = clock.now
    event = http_event(source=source, prompt="a", max_new_tokens=63)
    body = payload(function.invoke(event, Context(120_000)))
    if seconds is None:
        assert body["finish_reason"] == "length"
    else:
        assert body["finish_reason"] == "deadline"
        assert seconds - 3 <= clock.now - began < seconds
        assert len(body["generated_text"]) > 0


def test_the_earlier_of_both_timeouts_counts(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, clock = decoding(model_dir, monkeypatch)
    began = clock.now
    body = payload(
        function.invoke(http_event(source="api", prompt="a", max_new_tokens=63), Context(9_000))
    )
    assert (body["finish_reason"], clock.now - began < 9) == ("deadline", True)


@pytest.mark.parametrize(("ago", "seconds"), [(12, 18), (0, 30), (86_400, 30), (-86_400, 30)])
def test_the_timeout_starts_with_the_request_unless_the_event_is_old(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, ago: int, seconds: int
) -> None:
    function, clock = decoding(model_dir, monkeypatch)
    began = clock.now
    event = http_event(source="api", prompt="a", max_new_tokens=63)
    event["requestContext"]["timeEpoch"] = int(1000 * (time.time() - ago))
    assert payload(function.invoke(event, Context(120_000)))["finish_reason"] == "deadline"
    assert seconds - 3 <= clock.now - began < seconds


def test_direct_and_batch_invokes_have_only_the_functions_timeout(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, _ = decoding(model_dir, monkeypatch, http_timeout=5)
    event = {"prompt": "a", "max_new_tokens": 63}
    assert function.invoke(event, Context(120_000))["finish_reason"] == "length"
    (result,) = function.invoke({"Items": [event]}, Context(120_000))["results"]
    assert result["finish_reason"] == "length"


def started(initialization_type: str, **environ: str) -> Function:
    return app._start(
        {
            "GPT2_PRELOAD": "init",
            "AWS_LAMBDA_INITIALIZATION_TYPE": initialization_type,
            "OPENBLAS_NUM_THREADS": "2",
        }
        | environ
    )


@pytest.fixture(params=["missing", "broken"])
def no_model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder without a model, or with an invalid one."""
    if request.param == "broken":
        (write_model(tmp_path / "model") / "model.safetensors").write_bytes(b"broken")
    return str(tmp_path / "model")


@pytest.mark.parametrize("initialization_type", ["on-demand", "lambda-managed-instances", ""])
def test_a_failed_preload_on_demand_is_a_503_and_retried(
    initialization_type: str, no_model: str, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    function = started(initialization_type, GPT2_MODEL_DIR=no_model)
    logged = json.loads(capsys.readouterr().err)
    assert (logged["level"], logged["type"] in ("ModelUnavailable", "CheckpointError")) == (
        "ERROR",
        True,
    )
    assert function.invoke(load_event("url-health"))["statusCode"] == 200
    assert function.invoke(http_event(prompt="a"))["statusCode"] == 503
    shutil.rmtree(no_model, ignore_errors=True)
    shutil.copytree(model_dir, no_model)
    assert function.invoke(http_event(prompt="a"))["statusCode"] == 200


@pytest.mark.parametrize("initialization_type", ["provisioned-concurrency", "snap-start"])
def test_a_failed_preload_fails_the_init_of_a_version(
    initialization_type: str, no_model: str
) -> None:
    with pytest.raises((ModelUnavailable, CheckpointError)):
        started(initialization_type, GPT2_MODEL_DIR=no_model)


def test_an_internal_error_is_raised_without_its_message(
    small: Function, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("patient John Doe")

    monkeypatch.setattr(Function, "_batch", broken)
    with pytest.raises(InternalError) as caught:
        small.invoke({"Items": [{"prompt": "a"}]}, Context())
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "patient" not in caught.value.message + capsys.readouterr().err


def test_an_empty_prompt_is_a_400_without_a_beginning_of_text_token(
    tmp_path: Path,
) -> None:
    folder = write_model(tmp_path / "model", small_config(bos_token_id=None, eos_token_id=None))
    function = Function(Settings(model_dir=str(folder)))
    event = load_event("url-generate") | {"body": '{"prompt": ["a", ""]}'}
    reply = function.invoke(event)
    assert (reply["statusCode"], payload(reply)["error"]["param"]) == (400, "prompt[1]")


# With lone surrogates, which JSON can escape.
TEXT = st.text(st.characters(exclude_categories=[]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        [
            "prompt",
            "inputs",
            "parameters",
            "max_new_tokens",
            "stop",
            "stream",
            "id",
            "warmup",
            "x",
            "return_full_text",
        ]
    ),
    JSON,
    max_size=4,
)
BODIES = (
    st.none()
    | st.text(max_size=40)
    | JSON
    | FIELDS.map(json.dumps)
    | st.binary(max_size=40).map(lambda raw: raw.decode("latin-1"))
)
HTTP_NAMES = ["url-generate", "rest-generate", "alb-generate", "alb-generate-multi-value"]
HTTP_KEYS = [
    "body",
    "isBase64Encoded",
    "headers",
    "multiValueHeaders",
    "rawPath",
    "path",
    "httpMethod",
    "version",
]


@st.composite
def http_events(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """An event file with any body, and some parts replaced by any value."""
    name = draw(st.sampled_from(HTTP_NAMES))
    event = load_event(name)
    event["body"] = draw(BODIES)
    event["isBase64Encoded"] = draw(st.booleans())
    for key in draw(st.lists(st.sampled_from(HTTP_KEYS), max_size=2)):
        event[key] = draw(JSON)
    kind = draw(st.sampled_from(["application/json", "application/x-www-form-urlencoded", "a/b"]))
    if isinstance(event.get("headers"), dict):
        event["headers"]["content-type"] = kind
    return name, event


def check_http_answer(function: Function, case: tuple[str, dict[str, Any]]) -> None:
    name, event = case
    reply = function.invoke(event, Context())
    multi = "multiValueHeaders" in reply
    check_http(reply, alb=name.startswith("alb"), multi=multi)
    assert reply["statusCode"] == 200 or 400 <= reply["statusCode"] < 500
    json.dumps(reply, ensure_ascii=False, allow_nan=False).encode()


def check_direct_answer(function: Function, event: Any) -> None:
    try:
        reply = function.invoke(event, Context())
    except UnsupportedEvent:
        request_keys = {"prompt", "inputs", "warmup", "populate"}
        assert not isinstance(event, dict) or request_keys.isdisjoint(event)
        return
    json.dumps(reply, ensure_ascii=False, allow_nan=False).encode()
    if isinstance(reply, dict) and "error" in reply:
        kind = reply.get("error_type") or reply["error"]["type"]
        assert kind in ("validation", "BadRequest", "LimitExceeded", "InvalidPrompt")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Function:
    folder = write_model(tmp_path_factory.mktemp("fuzzed"), small_config(n_positions=32))
    return Function(Settings(model_dir=str(folder), model_dir_named=True))


@given(http_events())
def test_any_http_event_gets_a_reply_below_500(
    fuzzed: Function, case: tuple[str, dict[str, Any]]
) -> None:
    check_http_answer(fuzzed, case)


@given(JSON | FIELDS)
def test_any_direct_event_gets_a_reply_without_an_internal_error(
    fuzzed: Function, event: Any
) -> None:
    check_direct_answer(fuzzed, event)


@pytest.mark.slow
@hypothesis_settings(max_examples=10_000)
@given(http_events())
def test_many_http_events_get_a_reply_below_500(
    fuzzed: Function, case: tuple[str, dict[str, Any]]
) -> None:
    check_http_answer(fuzzed, case)


@pytest.mark.slow
@hypothesis_settings(max_examples=10_000)
@given(JSON | FIELDS)
def test_many_direct_events_get_a_reply_without_an_internal_error(
    fuzzed: Function, event: Any
) -> None:
    check_direct_answer(fuzzed, event)


def test_the_demo_model_is_part_of_the_project() -> None:
    from handler.store.select import DEMO_DIR

    assert Path(DEMO_DIR) == DEMO


class PanicException(BaseException):
    """Like the panic of a Rust package: not an `Exception`, and identified by its name."""


def test_a_panic_while_a_prompt_is_encoded_is_an_error_reply(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer

    folder = write_model(tmp_path / "panics", tokenizer=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<sep>", rstrip=True), AddedToken("\n", lstrip=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    function = Function(Settings(model_dir=str(folder)))
    reply = function.invoke({"prompt": "x<sep>\n\ty", "max_new_tokens": 1})
    assert reply["error"]["type"] == "TokenizerError"
    assert "error" not in function.invoke({"prompt": "x", "max_new_tokens": 1})


def test_a_panic_while_a_tokenizer_is_opened_is_an_error_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokenizers

    def panic(_path: str) -> None:
        raise PanicException("called `Option::unwrap()` on a `None` value")

    folder = write_model(tmp_path / "panics")
    (folder / "added_tokens.json").write_text("{}")  # only the package reads this file
    function = Function(Settings(model_dir=str(folder)))
    with monkeypatch.context() as patch:
        patch.setattr(tokenizers.Tokenizer, "from_file", panic, raising=False)
        patch.setattr(tokenizers.Tokenizer, "from_str", panic, raising=False)
        patch.setattr(tokenizers.Tokenizer, "from_buffer", panic, raising=False)
        assert function.invoke({"prompt": "x"})["error"]["type"] == "TokenizerError"
    assert "error" not in function.invoke({"prompt": "x", "max_new_tokens": 1})


def test_unavailable_kernels_are_a_settings_error(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2core import engine
    from gpt2core.kernels import Native

    monkeypatch.setattr(engine, "choose_native", lambda: Native(None, "are not built"))
    settings = Settings(model_dir=str(model_dir), model_dir_named=True, kernels="native")
    reply = Function(settings).invoke({"prompt": "abc"})
    assert reply["error"]["type"] == "SettingsError"
    assert reply["error"]["message"] == (
        "GPT2_KERNELS is 'native'; accepted: auto or numpy (the native kernels are not built;"
        " use 'auto' or 'numpy')"
    )
    assert Function(settings._replace(kernels="auto")).invoke({"prompt": "abc"})["generated_text"]
