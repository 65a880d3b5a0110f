"""`python -m handler serve` with real sockets and clients."""

import gzip
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from handler import server
from handler.server import INVOCATIONS
from tests.conftest import ROOT
from tests.support.events import load_event
from tests.support.until import until


def start(model_dir: Path, log: Path) -> tuple["subprocess.Popen[bytes]", int]:
    with log.open("w") as file:  # a pipe would be full after some requests
        process = subprocess.Popen(
            [sys.executable, "-m", "handler", "serve", "--port", "0", "--model", str(model_dir)],
            stderr=file,
            cwd=ROOT,
        )
    until(lambda: "\n" in log.read_text() or process.poll() is not None)
    line = log.read_text()
    match = re.match(r"listening on http://127\.0\.0\.1:(\d+) \(Ctrl-C stops\)\n", line)
    assert match, line
    return process, int(match[1])


def test_the_server_prints_its_page_and_a_working_request(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2_API_KEY", "secret")
    process, port = start(model_dir, tmp_path / "log")
    try:
        _, page, request = (tmp_path / "log").read_text().splitlines()
        assert page.split() == ["page:", f"http://127.0.0.1:{port}/"]
        _, curl, url, _, header, _, body = shlex.split(request)
        name, value = os.path.expandvars(header).split(": ")
        assert (curl, url) == ("curl", f"http://127.0.0.1:{port}/generate")
        status, _, reply = ask(port, "POST", "/generate", body.encode(), {name: value})
        assert (status, json.loads(reply)["usage"]["completion_tokens"]) == (200, 12)
    finally:
        assert "secret" not in stop(process, tmp_path / "log", signal.SIGTERM)


@pytest.fixture(scope="module")
def port(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    log = tmp_path_factory.mktemp("server") / "log"
    process, port = start(model_dir, log)
    yield port
    assert "Traceback" not in stop(process, log, signal.SIGTERM)


def stop(process: "subprocess.Popen[bytes]", log: Path, number: int) -> str:
    """Stop the server; returns its log."""
    process.send_signal(number)
    assert process.wait(30) == 0
    return log.read_text()


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


def test_replies_have_timings_and_cold_start_headers(port: int) -> None:
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
def test_every_way_to_send_a_body_with_curl_works(port: int, options: list[str]) -> None:
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


def test_concurrent_requests_get_their_own_replies(port: int) -> None:
    prompts = [f"prompt number {i}" for i in range(16)]

    def text(prompt: str) -> str:
        _, _, body = ask(port, "POST", "/generate", {"prompt": prompt, "max_new_tokens": 12})
        return str(json.loads(body)["generated_text"])

    alone = [text(prompt) for prompt in prompts]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(text, prompts)) == alone
    assert len(set(alone)) > 1


CHUNKS = b'9;ext="a"\r\n{"prompt"\r\n1\r\n:\r\n5\r\n"abc"\r\n001\r\n}\r\n0\r\nTrailer: x\r\n\r\n'


def exchange(port: int, data: bytes, half_close: bool = False) -> list[tuple[int, Any]]:
    """Send bytes; returns status and JSON of each response until the connection closes."""
    answers = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
        raw.sendall(data)
        if half_close:
            raw.shutdown(socket.SHUT_WR)
        with raw.makefile("rb") as file:
            while line := file.readline():
                length = 0
                while header := file.readline().strip():
                    name, _, value = header.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                answers.append((int(line.split()[1]), json.loads(file.read(length))))
    return answers


@pytest.mark.parametrize("path", ["/generate", INVOCATIONS])
def test_a_chunked_body_is_read_and_the_connection_is_kept(port: int, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n".encode()
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    first, second = exchange(port, head + CHUNKS + last)
    assert (first[0], first[1]["usage"]["prompt_tokens"]) == (200, 3)
    assert (second[0], second[1]["status"]) == (200, "ok")


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        (b"x\r\n", 400),
        (b"-1\r\n", 400),
        (b"+5\r\nabcde\r\n0\r\n\r\n", 400),
        (b"5\r\nabc", 400),
        (b"3\r\nabcdef\r\n0\r\n\r\n", 400),
        (b"3\r\nabc\r\n", 400),
        (b"0\r\n", 400),
        (b"a" * 100_000, 400),
        (b"f" * 15 + b"\r\n", 413),
        (b"600000\r\n" + bytes(0x600000) + b"\r\n1\r\n", 413),
    ],
)
def test_invalid_and_too_large_chunked_bodies_get_a_status(
    port: int, chunks: bytes, status: int
) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    ((found, body),) = exchange(port, head + chunks, half_close=True)
    assert found == status
    assert body["error"]["message"]


def test_the_invocations_path_is_a_route_of_the_server(port: int) -> None:
    status, _, body = ask(port, "POST", INVOCATIONS, load_event("url-generate"))
    reply = json.loads(body)
    assert (status, reply["statusCode"]) == (200, 200)
    status, _, body = ask(port, "POST", INVOCATIONS, {"Records": []})
    assert (status, json.loads(body)["errorType"]) == (200, "UnsupportedEvent")
    status, _, body = ask(port, "POST", INVOCATIONS, b"")
    assert (status, json.loads(body)["errorType"]) == (200, "Runtime.UnmarshalError")
    status, headers, _ = ask(port, "GET", INVOCATIONS)
    assert (status, headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["//generate", "/gen%65rate", "/generate/", "/%2Fgenerate"])
def test_paths_are_served_as_a_function_url_serves_them(port: int, path: str) -> None:
    assert ask(port, "POST", path, {"prompt": "abc", "max_new_tokens": 1})[0] == 200


def test_a_compressed_body_is_decompressed(port: int) -> None:
    body = gzip.compress(b'{"prompt": "abc", "max_new_tokens": 1}')
    for kind in ("application/json", "application/octet-stream", ""):
        headers = {"Content-Encoding": "gzip", "Content-Type": kind}
        status, _, _ = ask(port, "POST", "/generate", body, headers)
        assert status == (415 if "octet" in kind else 200)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("//a%20b//c?x=1&y=&x=2", "//a%20b//c", {"x": "1,2", "y": ""}),
        ("http://other/%7Ea", "/%7Ea", None),
    ],
)
def test_events_have_path_and_query_like_a_function_url(
    target: str, path: str, query: dict[str, str] | None
) -> None:
    seen: list[Any] = []

    def keep(event: Any, context: Any) -> Any:
        seen.append(event)
        return {"inferred": True}

    with server.Server(0, handler=keep) as local:
        thread = threading.Thread(target=local.serve_forever)
        thread.start()
        headers = "Host: x\r\nAccept: a\r\nACCEPT: b\r\nConnection: close\r\n\r\n"
        (answer,) = exchange(local.server_port, f"GET {target} HTTP/1.1\r\n{headers}".encode())
        assert answer == (200, {"inferred": True})
        local.shutdown()
        thread.join()
    (event,) = seen
    assert (event["rawPath"], event["requestContext"]["http"]["path"]) == (path, path)
    assert event.get("queryStringParameters") == query
    assert event["headers"]["accept"] == "a,b"


def test_a_connection_can_send_several_requests(port: int) -> None:
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
        ("POST /generate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", 400),
        ("POST /generate HTTP/1.1\r\nTransfer-Encoding: gzip\r\n", 501),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        ("BREW /generate HTTP/1.1\r\n", 405),
        ("M-SEARCH /health HTTP/1.1\r\n", 405),
        ("TRACE / HTTP/1.1\r\n", 405),
        ("OPTIONS * HTTP/1.1\r\n", 405),
        ("CONNECT localhost:80 HTTP/1.1\r\n", 405),
        ("BREW /nowhere HTTP/1.1\r\n", 404),
        ("GET /%00%ff HTTP/1.1\r\n", 404),
        ("GET http://[/nowhere HTTP/1.1\r\n", 404),
        ("GET http://localhost/nowhere HTTP/1.1\r\n", 404),
    ],
)
def test_malformed_requests_get_a_status(port: int, head: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall(head.encode() + b"Host: localhost\r\nConnection: close\r\n\r\n")
        raw.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    headers, _, body = answer.partition(b"\r\n\r\n")
    assert headers.split()[1] == str(status).encode()
    assert json.loads(body)["error"]["message"]


def test_a_request_that_is_not_http_gets_an_error_object(port: int) -> None:
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


def test_the_log_has_route_and_status_but_no_input_of_the_client(
    model_dir: Path, tmp_path: Path
) -> None:
    process, port = start(model_dir, tmp_path / "log")
    ask(port, "POST", "/secret/John%20Doe", {"prompt": "secret"})
    ask(port, "SECRET", "/generate", {"prompt": "secret"})
    ask(port, "POST", INVOCATIONS, {"prompt": "a", "secret": 1})
    ask(port, "POST", "/generate?key=secret", {"prompt": "secret"})
    ask(port, "POST", "/generate", {"prompt": "secret", "nonsense": "secret"})
    log = stop(process, tmp_path / "log", signal.SIGTERM)
    lines = sorted(line.removesuffix(" ms").rpartition(" ")[0] for line in log.splitlines())
    assert [line for line in lines if line.endswith(("200", "400", "404", "405"))] == [
        "(no method) /generate 405",
        "POST (no route) 404",
        f"POST {INVOCATIONS} 200",
        "POST /generate 200",
        "POST /generate 400",
    ]
    assert "secret" not in log


def test_a_connection_reset_between_requests_is_not_an_error(
    model_dir: Path, tmp_path: Path
) -> None:
    process, port = start(model_dir, tmp_path / "log")
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), 60) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1)
            reset = struct.pack("ii", 1, 0)  # closing sends RST
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    assert ask(port, "GET", "/health")[0] == 200
    assert "Traceback" not in stop(process, tmp_path / "log", signal.SIGTERM)


def test_ctrl_c_finishes_active_requests_and_exits_with_0(tmp_path: Path) -> None:
    from tests.support.models import small_config, write_model

    config = small_config(n_positions=4096, n_layer=8, eos_token_id=None)
    slow = write_model(tmp_path / "slow", config)
    process, port = start(slow, tmp_path / "log")
    body = b'{"prompt": "abc", "max_new_tokens": 1000}'
    head = f"POST /generate HTTP/1.0\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
        raw.sendall(head.encode() + body)
        # A second response shows that the server has started the first request.
        assert ask(port, "POST", "/generate", {"prompt": "abc", "max_new_tokens": 1})[0] == 200
        os.kill(process.pid, signal.SIGINT)
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    headers, _, content = answer.partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 200 ")
    assert json.loads(content)["usage"]["completion_tokens"] == 1000
    assert process.wait(30) == 0
    log = (tmp_path / "log").read_text()
    assert log.endswith("stopped\n")
    assert "Traceback" not in log


def test_a_port_in_use_is_one_error_line(port: int, model_dir: Path) -> None:
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
