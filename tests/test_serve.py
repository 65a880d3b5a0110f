"""`python -m handler serve`: a real process, real sockets, real clients."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


def start(model_dir: Path) -> tuple["subprocess.Popen[str]", int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "handler", "serve", "--port", "0", "--model", str(model_dir)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    match = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+) \(Ctrl-C stops\)\n", line)
    assert match, line
    return process, int(match[1])


@pytest.fixture(scope="module")
def port(model_dir: Path) -> Iterator[int]:
    process, port = start(model_dir)
    yield port
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in log


def ask(
    port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request(method, path, raw, headers or {})
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, {k.lower(): v for k, v in reply.getheaders()}, content


def test_generate_answers_json_with_timings_and_cold_start_in_the_headers(port: int) -> None:
    status, headers, body = ask(port, "POST", "/generate", {"prompt": "abc", "max_new_tokens": 3})
    assert status == 200
    assert json.loads(body)["usage"]["completion_tokens"] == 3
    assert headers["content-type"] == "application/json"
    assert headers["x-cold-start"] in ("true", "false")
    assert headers["server-timing"].startswith("process;dur=")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/health", None, 200),
        ("HEAD", "/health", None, 200),
        ("POST", "/", {"inputs": "abc"}, 200),
        ("POST", "/generate", b"", 400),
        ("POST", "/generate", b"{", 400),
        ("GET", "/generate", None, 405),
        ("DELETE", "/health", None, 405),
        ("POST", "/nowhere?prompt=secret", {"prompt": "abc"}, 404),
    ],
)
def test_routes_and_statuses(port: int, method: str, path: str, body: Any, status: int) -> None:
    found, _, content = ask(port, method, path, body)
    assert found == status
    assert bool(content) == (method != "HEAD")


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize(
    "options",
    [
        ["-d", '{"prompt": "abc", "max_new_tokens": 4}'],
        ["-H", "Content-Type: application/json", "-d", '{"prompt": "abc", "max_new_tokens": 4}'],
        ["--json", '{"prompt": "abc", "max_new_tokens": 4}'],
        ["-H", "Content-Type:", "-d", '{"prompt": "abc", "max_new_tokens": 4}'],
        ["-d", "prompt=abc", "-d", "max_new_tokens=4"],
        ["--data-urlencode", "prompt=abc", "-d", "max_new_tokens=4"],
    ],
)
def test_curl_gets_an_answer_however_it_sends_the_body(port: int, options: list[str]) -> None:
    url = f"http://127.0.0.1:{port}/generate"
    done = subprocess.run(
        ["curl", "-sS", "--fail", url, *options], capture_output=True, check=True, timeout=60
    )
    assert json.loads(done.stdout)["usage"] == {"prompt_tokens": 3, "completion_tokens": 4}


def test_the_hugging_face_client_gets_its_text(port: int) -> None:
    from huggingface_hub import InferenceClient

    client = InferenceClient(f"http://127.0.0.1:{port}")
    text = client.text_generation("abc", max_new_tokens=4, return_full_text=False)
    assert text
    details = client.text_generation("abc", max_new_tokens=4, details=True, stop=["\0"])
    assert details.details is not None
    assert details.details.generated_tokens == 4


def test_requests_at_once_get_their_own_answers(port: int) -> None:
    prompts = [f"prompt number {i}" for i in range(16)]

    def text(prompt: str) -> str:
        _, _, body = ask(port, "POST", "/generate", {"prompt": prompt, "max_new_tokens": 12})
        return str(json.loads(body)["generated_text"])

    alone = [text(prompt) for prompt in prompts]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(text, prompts)) == alone
    assert len(set(alone)) > 1


def test_one_connection_carries_several_requests(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(3):
        connection.request("POST", "/generate", b'{"prompt": "abc", "max_new_tokens": 1}')
        assert connection.getresponse().read()
    connection.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST /generate HTTP/1.1\r\nContent-Length: 99999999\r\n", 413),
        ("POST /generate HTTP/1.1\r\nContent-Length: 1e3\r\n", 400),
        ("POST /generate HTTP/1.1\r\nContent-Length: " + "9" * 5000 + "\r\n", 413),
        ("POST /generate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", 411),
        ("BREW /generate HTTP/1.1\r\n", 501),
        ("GET /%00%ff HTTP/1.1\r\n", 404),
        ("GET http://[/nowhere HTTP/1.1\r\n", 404),
        ("GET http://localhost/nowhere HTTP/1.1\r\n", 404),
    ],
)
def test_raw_requests_that_make_no_sense_get_a_status(port: int, head: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall(head.encode() + b"Host: localhost\r\nConnection: close\r\n\r\n")
        raw.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    headers, _, body = answer.partition(b"\r\n\r\n")
    assert headers.split()[1] == str(status).encode()
    assert json.loads(body)["error"]["message"]


def test_what_is_no_http_at_all_gets_an_error_object(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert json.loads(answer)["error"]["type"] == "BadRequest"


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_sees_the_413_of_a_body_that_is_too_large(port: int, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(8 * 1024 * 1024))
    url = f"http://127.0.0.1:{port}/generate"
    done = subprocess.run(
        ["curl", "-sS", "-H", "Expect:", url, "--data-binary", f"@{tmp_path / 'large'}"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout)["error"]["type"] == "BodyTooLarge"


def test_the_log_has_path_and_status_but_neither_query_nor_prompt(model_dir: Path) -> None:
    process, port = start(model_dir)
    ask(port, "POST", "/generate?key=secret", {"prompt": "secret"})
    ask(port, "POST", "/generate", {"prompt": "secret", "nonsense": "secret"})
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert re.findall(r"POST /generate (\d+) ", log) == ["200", "400"]
    assert "secret" not in log


def test_ctrl_c_finishes_the_request_under_way_and_stops_cleanly(tmp_path: Path) -> None:
    from tests.models import small_config, write_model

    config = small_config(n_positions=4096, n_layer=8, eos_token_id=None)
    slow = write_model(tmp_path / "slow", config)
    process, port = start(slow)
    body = b'{"prompt": "abc", "max_new_tokens": 1000}'
    head = f"POST /generate HTTP/1.0\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
        raw.sendall(head.encode() + body)
        # A second answer shows that the server has taken up the first request.
        assert ask(port, "POST", "/generate", {"prompt": "abc", "max_new_tokens": 1})[0] == 200
        os.kill(process.pid, signal.SIGINT)
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    headers, _, content = answer.partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 200 ")
    assert json.loads(content)["usage"]["completion_tokens"] == 1000
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert log.endswith("stopped\n")
    assert "Traceback" not in log


def test_a_port_in_use_is_one_clear_line(port: int, model_dir: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "handler", "serve", "--port", str(port)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
