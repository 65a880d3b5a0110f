"""GPT2_API_KEY: which HTTP requests are authorized."""

import json
from typing import Any

import pytest

from handler.app import Function
from handler.errors import SettingsError
from handler.settings import Settings
from tests.conftest import DEMO
from tests.support.events import http_event, load_event, payload

KEY = "an-api-key-for-the-tests"


@pytest.fixture
def function() -> Function:
    return Function(Settings.from_environ({"GPT2_API_KEY": KEY, "GPT2_MODEL_DIR": str(DEMO)}))


def status(function: Function, authorization: str | None = None, **options: Any) -> int:
    headers = {"content-type": "application/json"}
    if authorization is not None:
        headers["Authorization"] = authorization
    event = http_event('{"prompt": "x", "max_tokens": 1}', headers=headers, **options)
    found: int = function.invoke(event)["statusCode"]
    return found


@pytest.mark.parametrize("source", ["url", "api", "rest", "alb"])
@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer  {KEY}", 200),
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        (f"Bearer {KEY[:-1]}", 401),
        (f"Bearer {KEY}x", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
        ("Bearer ключ", 401),
        ("Bearer \ud800", 401),
    ],
)
def test_without_iam_the_key_is_required(
    function: Function, source: str, authorization: str | None, expected: int
) -> None:
    assert status(function, authorization, source=source, path="/v1/completions") == expected


@pytest.mark.parametrize(
    ("path", "method"),
    [("/generate", "POST"), ("/", "POST"), ("/v1/models", "GET"), ("/v1/models/demo", "GET")],
)
def test_generation_and_model_routes_need_the_key(
    function: Function, path: str, method: str
) -> None:
    assert status(function, path=path, method=method) == 401


@pytest.mark.parametrize(
    ("path", "method"), [("/wp-login.php", "GET"), ("/generate", "DELETE"), ("/health", "POST")]
)
def test_without_the_key_unknown_routes_are_not_revealed(
    function: Function, path: str, method: str
) -> None:
    assert status(function, path=path, method=method) == 401
    assert status(function, f"Bearer {KEY}", path=path, method=method) in (404, 405)


@pytest.mark.parametrize("path", ["/generate", "/wp-login.php"])
def test_unauthorized_requests_are_logged_but_not_counted_as_errors(
    function: Function, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    status(function, path=path)
    line = json.loads(capsys.readouterr().err)
    assert (line["error"], line["Requests"], line["Errors"]) == ("Unauthorized", 0, 0)
    status(function, f"Bearer {KEY}", path="/wp-login.php")
    wrong = json.loads(capsys.readouterr().err)
    assert (wrong["error"], wrong["Requests"], wrong["Errors"]) == ("RouteNotFound", 1, 1)


def test_health_checks_and_direct_invokes_need_no_key(function: Function) -> None:
    assert function.invoke(load_event("url-health"))["statusCode"] == 200
    assert function.invoke({"prompt": "x", "max_new_tokens": 1})["generated_text"]


def test_requests_authorized_by_iam_need_no_key(function: Function) -> None:
    for source in ("url", "api"):
        event = http_event(source=source, prompt="x", max_new_tokens=1)
        event["requestContext"]["authorizer"] = {"iam": {"userArn": "arn:aws:iam::1:user/a"}}
        assert function.invoke(event)["statusCode"] == 200
    event = http_event(source="rest", prompt="x", max_new_tokens=1)
    event["requestContext"]["identity"]["userArn"] = "arn:aws:iam::1:user/a"
    assert function.invoke(event)["statusCode"] == 200


@pytest.mark.parametrize("authorizer", [None, {}, {"iam": None}, {"jwt": {"claims": {}}}, "iam"])
def test_other_authorizers_do_not_replace_the_key(function: Function, authorizer: Any) -> None:
    event = http_event(prompt="x", max_new_tokens=1)
    event["requestContext"]["authorizer"] = authorizer
    assert function.invoke(event)["statusCode"] == 401


def test_without_the_setting_no_key_is_needed() -> None:
    assert status(Function(Settings(model_dir=str(DEMO))), path="/v1/completions") == 200


def test_the_401_reply_has_the_format_of_its_route(function: Function) -> None:
    reply = function.invoke(http_event(path="/v1/completions", prompt="x"))
    assert payload(reply)["error"]["code"] == "invalid_api_key"
    assert reply["headers"]["WWW-Authenticate"] == "Bearer"
    reply = function.invoke(http_event(prompt="x"))
    assert payload(reply)["error"]["type"] == "Unauthorized"


def test_keys_are_not_in_replies_or_logs(
    function: Function, capsys: pytest.CaptureFixture[str]
) -> None:
    event = http_event(prompt="x", headers={"authorization": "Bearer not-the-right-one"})
    written = json.dumps(function.invoke(event)) + capsys.readouterr().err
    assert "not-the-right-one" not in written
    assert KEY not in written + repr(function.settings)


def test_an_invalid_key_setting_is_rejected_without_its_value() -> None:
    with pytest.raises(SettingsError, match="GPT2_API_KEY") as caught:
        Settings.from_environ({"GPT2_API_KEY": "two words"})
    assert "words" not in caught.value.message
