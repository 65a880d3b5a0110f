"""GPT2_CORS_ORIGINS: requests from pages of other origins."""

from typing import Any

import pytest

from handler.app import Function
from handler.errors import SettingsError
from handler.settings import Secret, Settings
from tests.support.events import http_event
from tests.support.fresh_process import modules_after

ORIGIN = "https://example.com"
OTHER = "https://example.org"


def ask(
    origins: str, method: str = "GET", path: str = "/health", source: str = "url", **headers: str
) -> tuple[int, dict[str, str]]:
    settings = Settings.from_environ({"GPT2_CORS_ORIGINS": origins})
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    event = http_event(source=source, path=path, method=method, headers=sent)
    reply = Function(settings._replace(api_key=Secret("key"))).invoke(event)
    found = reply.get("headers") or {k: v[0] for k, v in reply["multiValueHeaders"].items()}
    return reply["statusCode"], found


def preflight(origins: str, path: str = "/generate", **fields: Any) -> tuple[int, dict[str, str]]:
    return ask(origins, "OPTIONS", path, access_control_request_method="POST", **fields)


def test_without_the_setting_replies_have_no_cors_headers() -> None:
    _, headers = ask("", origin=ORIGIN)
    assert not [name for name in headers if name.startswith("Access-Control")]
    assert "Vary" not in headers
    assert preflight("", origin=ORIGIN)[0] == 401


@pytest.mark.parametrize("source", ["url", "api", "rest", "alb"])
def test_a_configured_origin_is_allowed_from_every_source(source: str) -> None:
    status, headers = preflight(f"{OTHER}, {ORIGIN}", origin=ORIGIN, source=source)
    assert status == 200
    assert headers["Access-Control-Allow-Origin"] == ORIGIN
    assert headers["Access-Control-Allow-Methods"] == "POST"
    assert headers["Access-Control-Allow-Headers"] == "Authorization, *"
    assert headers["Vary"] == "Origin"


def test_other_origins_are_not_allowed() -> None:
    for _, headers in (ask(ORIGIN, origin=OTHER), preflight(ORIGIN, origin=OTHER), ask(ORIGIN)):
        assert "Access-Control-Allow-Origin" not in headers
        assert headers["Vary"] == "Origin"


def test_a_star_allows_every_origin() -> None:
    assert ask("*", origin=OTHER)[1]["Access-Control-Allow-Origin"] == "*"


def test_errors_have_cors_headers() -> None:
    status, headers = ask(ORIGIN, "POST", "/generate", origin=ORIGIN)
    assert (status, headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)


def test_only_preflights_of_routes_need_no_key() -> None:
    assert ask(ORIGIN, "OPTIONS", "/generate", origin=ORIGIN)[0] == 401
    assert preflight(ORIGIN, "/nowhere", origin=ORIGIN)[0] == 401


@pytest.mark.parametrize(
    "value", ["example.com", "https://example.com/", "null", "https://*.example.com", "ftp://a"]
)
def test_an_invalid_origin_is_rejected(value: str) -> None:
    with pytest.raises(SettingsError, match="GPT2_CORS_ORIGINS"):
        Settings.from_environ({"GPT2_CORS_ORIGINS": value})


def test_cors_is_imported_only_with_the_setting() -> None:
    loaded = modules_after(
        "from handler.app import lambda_handler\n"
        "assert lambda_handler(json.load(open('events/url-health.json')))['statusCode'] == 200"
    )
    assert "handler.cors" not in loaded
