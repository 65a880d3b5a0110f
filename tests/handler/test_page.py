"""`GET /`: the page, and how each source sends it."""

import base64
import hashlib
import re
from typing import Any

import pytest

from handler.app import Function
from handler.page import page
from handler.settings import Secret, Settings
from tests.support.events import http_event
from tests.support.fresh_process import modules_after


def get(path: str = "/", method: str = "GET", source: str = "url", **settings: Any) -> Any:
    event = http_event(source=source, path=path, method=method)
    return Function(Settings(**settings)).invoke(event)


def header(reply: Any, name: str) -> str:
    headers = reply.get("headers") or {k: v[0] for k, v in reply["multiValueHeaders"].items()}
    return str(headers[name])


@pytest.mark.parametrize("source", ["url", "api", "rest", "alb"])
def test_every_source_serves_the_page(source: str) -> None:
    reply = get(source=source)
    assert reply["statusCode"] == 200
    assert header(reply, "Content-Type") == "text/html; charset=utf-8"
    assert reply["body"].startswith("<!doctype html>")
    assert reply["isBase64Encoded"] is False


def test_the_page_needs_no_key() -> None:
    assert get(api_key=Secret("secret"))["statusCode"] == 200
    assert get("/generate", "POST", api_key=Secret("secret"))["statusCode"] == 401


@pytest.mark.parametrize("path", ["/gpt2", "/gpt2/"])
def test_the_page_is_served_below_a_base_path(path: str) -> None:
    assert get(path, base_path="/gpt2")["body"].startswith("<!doctype html>")


@pytest.mark.parametrize("method", ["PUT", "TRACE", "FOO", "OPTIONS"])
def test_other_methods_are_a_405_with_allow(method: str) -> None:
    reply = get(method=method)
    assert (reply["statusCode"], header(reply, "Allow")) == (405, "POST, GET, HEAD")


def test_the_content_security_policy_allows_only_the_pages_script_and_style() -> None:
    text, headers = page()
    policy = dict(
        part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";")
    )
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["form-action"] == "'none'"
    assert "unsafe" not in headers["Content-Security-Policy"]


def test_the_page_has_no_external_urls_and_no_inline_handlers() -> None:
    text, _ = page()
    assert not re.search(r"https?://|[\s\"']//[a-z]", text.split("<script>")[0])
    assert not re.search(r"<[^>]+\s(style|on\w+)=", text.split("<script>")[0])


def test_the_page_is_imported_only_on_request() -> None:
    loaded = modules_after(
        "from handler.app import lambda_handler\n"
        "assert lambda_handler(json.load(open('events/url-health.json')))['statusCode'] == 200\n"
        "assert lambda_handler({'prompt': 'abc', 'max_new_tokens': 1})['generated_text']"
    )
    assert "handler.page" not in loaded
