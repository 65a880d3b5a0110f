"""The page in a browser, against `python -m handler serve`.

Screenshots are written to the directory in GPT2_SCREENSHOTS, if it is set.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2core import Engine
from tests.conftest import DEMO
from tests.support.held_stream import TOKENS, held_stream
from tests.support.serve import KEY

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
PROMPT = "Once upon a time"
PHASES = ["process", "import", "source", "map", "tokenizer", "prefill", "decode"]
THEMES = [("light", 1280, 900), ("dark", 1280, 900), ("light", 360, 740)]

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Any) -> Iterator[Any]:
    """A browser tab that must not report errors, including policy violations."""
    context = chromium.new_context()
    context.set_default_timeout(30_000)
    tab = context.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on(
        "console",
        lambda message: (
            errors.append(message.text)
            if message.type == "error" and "401" not in message.text and "400" not in message.text
            else None
        ),
    )
    yield tab
    context.close()
    assert errors == []


def fill(tab: Any, **fields: object) -> None:
    for name, value in fields.items():
        tab.locator(f"#{name}").fill(str(value))


def wait_for_status(tab: Any, begin: str) -> str:
    from playwright.sync_api import expect

    expect(tab.locator("#status")).to_have_text(re.compile(f"^{begin}"), timeout=30_000)
    return str(tab.locator("#status").text_content())


def wait_for_tokens(tab: Any, count: int) -> None:
    from playwright.sync_api import expect

    expect(tab.locator("#output .token")).to_have_count(count, timeout=30_000)


def test_text_appears_token_by_token_with_timings(tab: Any, address: str) -> None:
    tab.goto(f"{address}/")
    fill(tab, prompt=PROMPT, max_new_tokens=24)
    tab.locator("#generate").click()
    assert wait_for_status(tab, "Done").startswith("Done: 24 tokens in ")
    expected = Engine.open(DEMO).generate(PROMPT, 24).text
    assert tab.locator("#output").text_content() == PROMPT + expected
    assert tab.locator("#output .token").count() > 12
    assert tab.locator("#phases th").all_text_contents()[:7] == PHASES
    assert tab.locator("#phases .fill").count() >= 2
    assert "in the function, model demo" in tab.locator("#timings-caption").text_content()


def test_every_option_is_sent_and_a_large_seed_is_exact(tab: Any, address: str) -> None:
    tab.goto(f"{address}/")
    fill(tab, prompt="it's", max_new_tokens=3, temperature=0.7, top_p=0.9,
         seed=18446744073709551615, stop="king\n\nqueen")  # fmt: skip
    with tab.expect_request("**/generate") as sent:
        tab.locator("#generate").click()
    assert sent.value.post_data == (
        '{"prompt": "it\'s", "max_new_tokens": 3, "temperature": 0.7, "top_p": 0.9,'
        ' "seed": 18446744073709551615, "stop": ["king","queen"], "stream": true}'
    )
    wait_for_status(tab, "Done")
    curl = tab.locator("#curl").text_content()
    assert curl.startswith(f"curl -N '{address}/generate'")
    assert "it'\\''s" in curl


def test_the_keyboard_can_start_and_stop_generation(tab: Any) -> None:
    with held_stream() as server:
        tab.goto(server.url)
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.id") == "prompt"
        tab.keyboard.press("Control+A")
        tab.keyboard.type("Once")
        tab.keyboard.press("Control+Enter")
        wait_for_tokens(tab, len(TOKENS))
        assert tab.locator("#output").text_content() == "Once" + "".join(TOKENS)
        tab.keyboard.press("Escape")
        assert wait_for_status(tab, "Stopped") == "Stopped after 2 tokens"
        assert server.disconnected.wait(30)


def test_every_control_is_reachable_by_tab(tab: Any, address: str) -> None:
    tab.goto(f"{address}/")
    order = []
    for _ in range(9):
        tab.keyboard.press("Tab")
        order.append(tab.evaluate("document.activeElement.id"))
    assert order == ["prompt", "max_new_tokens", "temperature", "top_p", "seed", "stop",
                     "generate", "copy", "curl"]  # fmt: skip


def test_the_stop_button_ends_the_stream_and_restores_the_focus(tab: Any) -> None:
    with held_stream() as server:
        tab.goto(server.url)
        tab.locator("#generate").click()
        wait_for_tokens(tab, len(TOKENS))
        tab.locator("#stop-button").click()
        wait_for_status(tab, "Stopped")
        assert tab.evaluate("document.activeElement.id") == "generate"
        assert server.disconnected.wait(30)


def test_the_page_asks_for_the_key_if_it_is_required(tab: Any, guarded: str) -> None:
    tab.goto(f"{guarded}/")
    assert tab.locator("#key-field").is_hidden()
    tab.locator("#generate").click()
    wait_for_status(tab, "Failed")
    assert tab.evaluate("document.activeElement.id") == "key"
    tab.keyboard.type(KEY)
    tab.keyboard.press("Enter")
    wait_for_status(tab, "Done")
    assert tab.locator("#error").is_hidden()
    assert KEY not in tab.locator("#curl").text_content()
    assert "Bearer $GPT2_API_KEY" in tab.locator("#curl").text_content()


def test_an_error_is_shown_at_its_field(tab: Any, address: str) -> None:
    tab.goto(f"{address}/")
    tab.locator("#form").evaluate(
        "form => form.noValidate = true"
    )  # to get an error from the server
    fill(tab, prompt="x", top_p=2)
    tab.locator("#generate").click()
    wait_for_status(tab, "Failed")
    assert tab.locator("#error").text_content().startswith("top_p is 2")
    assert tab.locator("#top_p").get_attribute("aria-invalid") == "true"


@pytest.mark.parametrize("prefix", ["prod", "prod/"])
def test_requests_use_the_path_of_the_page(tab: Any, address: str, prefix: str) -> None:
    tab.route(f"{address}/prod/**", lambda route: route.continue_())
    html = tab.request.get(f"{address}/").text()
    tab.route(
        f"{address}/{prefix}", lambda route: route.fulfill(body=html, content_type="text/html")
    )
    tab.goto(f"{address}/{prefix}")
    assert f"'{address}/prod/generate'" in tab.locator("#curl").text_content()


@pytest.mark.parametrize(("scheme", "width", "height"), THEMES)
def test_the_page_fits_and_axe_finds_no_violation(
    chromium: Any, guarded: str, tmp_path: Path, scheme: str, width: int, height: int
) -> None:
    context = chromium.new_context(
        color_scheme=scheme, viewport={"width": width, "height": height}, bypass_csp=True
    )
    tab = context.new_page()
    tab.goto(f"{guarded}/")
    for status in ("Failed", "Done"):  # with the error and the key's field, then with the text
        fill(tab, max_new_tokens=60)
        tab.locator("#generate").click()
        wait_for_status(tab, status)
        folder = Path(os.environ.get("GPT2_SCREENSHOTS", tmp_path))
        tab.screenshot(path=folder / f"{scheme}-{width}-{status.lower()}.png", full_page=True)
        fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert tab.evaluate(fits)
        if not AXE.is_file():
            pytest.skip("axe-core is not installed: it comes by npm, with make test-clients")
        tab.add_script_tag(path=AXE)
        found = tab.evaluate("axe.run()")
        assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]] == []
        fill(tab, key=KEY)
    context.close()
