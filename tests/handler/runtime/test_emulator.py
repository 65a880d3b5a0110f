"""The function under AWS's emulator with both runtimes: every event file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.emulator import (
    NAMES,
    OURS,
    THEIRS,
    Emulator,
    assert_answered,
    emulator,
    emulator_path,
)
from tests.support.events import load_event
from tests.support.models import small_config, write_model

RIE = emulator_path()
pytestmark = pytest.mark.skipif(
    RIE is None, reason="AWS's emulator is not installed: `make test` does (aws-sam-cli)"
)


@pytest.fixture(scope="module", params=[OURS, THEIRS], ids=["ours", "awslambdaric"])
def function(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Emulator]:
    assert RIE is not None
    log = tmp_path_factory.mktemp("emulator") / "log"
    with emulator(RIE, log, {}, request.param) as running:
        yield running
    for line in log.read_text().splitlines():  # a prompt is never logged
        assert "fox" not in line, line


@pytest.mark.parametrize("name", NAMES)
def test_every_event_gets_its_reply_under_the_emulator(function: Emulator, name: str) -> None:
    assert_answered(name, function.invoke(load_event(name)))


def test_the_first_invoke_is_a_cold_start_and_the_second_is_warm(tmp_path: Path) -> None:
    assert RIE is not None
    with emulator(RIE, tmp_path / "log", {}) as function:
        event = {"prompt": "Once upon a time", "max_new_tokens": 3}
        first, second = function.invoke(event), function.invoke(event)
    assert (first["cold_start"], second["cold_start"]) == (True, False)
    assert first["timings_ms"]["process"] > 0
    assert first["generated_text"] == second["generated_text"]


def test_killing_the_emulator_ends_the_function(tmp_path: Path) -> None:
    assert RIE is not None
    with emulator(RIE, tmp_path / "log", {}) as function:
        function.invoke({"prompt": "a", "max_new_tokens": 1})
        function_pids = function.processes()
        function.kill()
        assert len(function_pids) == 2
        for pid in function_pids:
            status = Path(f"/proc/{pid}/stat")
            assert not status.exists() or status.read_text().rsplit(")")[1].split()[0] == "Z"


def test_the_functions_timeout_returns_the_partial_text(tmp_path: Path) -> None:
    assert RIE is not None
    config = small_config(n_layer=48, n_positions=8192, eos_token_id=None)
    slow = write_model(tmp_path / "slow", config)
    environ = {"GPT2_MODEL_DIR": str(slow), "AWS_LAMBDA_FUNCTION_TIMEOUT": "3"}
    with emulator(RIE, tmp_path / "log", environ) as function:
        reply = function.invoke({"prompt": "abc", "max_new_tokens": 8000})
    assert reply["finish_reason"] == "deadline"
    assert 0 < reply["usage"]["completion_tokens"] < 8000


def test_an_invalid_setting_is_an_init_error_that_names_it(tmp_path: Path) -> None:
    assert RIE is not None
    with emulator(RIE, tmp_path / "log", {"GPT2_MAX_NEW_TOKENS": "many"}) as function:
        reply = function.invoke({"prompt": "abc"})
    assert reply["errorType"] == "SettingsError"
    assert "GPT2_MAX_NEW_TOKENS is 'many'" in reply["errorMessage"]
