"""Two minutes of `serve` with concurrent valid, invalid, slow and disconnecting clients."""

import http.client
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from gpt2core import Engine
from handler.dialects.request import Dialect
from tests.conftest import DEMO
from tests.support.dialects import SUPPORTED, name_of, paths_of, request_of
from tests.support.kernels import needs_native
from tests.support.serve import server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SOAK_S = 120
CONNECTIONS = 16
PROMPTS = ("Once upon a time", "The wolf", "A king", "She said: é", "x", "The old woman said")
LENGTHS = (1, 8, 40)
JSON = {"Content-Type": "application/json"}
INVALID = (
    ("POST", "/generate", b"{", 400),
    ("POST", "/generate", b'{"prompt": 5}', 400),
    ("POST", "/generate", b'{"prompt": "x", "unknown": 1}', 400),
    ("POST", "/", b'{"inputs": "x", "parameters": {"top_p": 7}}', 400),
    ("POST", "/v1/completions", b'{"prompt": "x", "model": "gpt-4"}', 404),
    ("POST", "/v1/completions", b'{"prompt": "x", "max_tokens": 9999}', 400),
    ("POST", "/nowhere", b"{}", 404),
    ("FOO", "/generate", b"", 405),
)


class Clients:
    """Shared by the clients: the port, the expected texts, and the count of each kind."""

    def __init__(self, port: int, expected: dict[tuple[str, int], str]) -> None:
        self.port = port
        self.expected = expected
        self.over = threading.Event()
        self.seen: Counter[str] = Counter()
        self.kinds: tuple[Callable[[random.Random], None], ...] = (
            self.valid, self.valid, self.streamed, self.invalid, self.slow, self.disconnecting,
        )  # fmt: skip

    def run(self, number: int) -> None:
        """Run clients of random kinds in sequence."""
        chance = random.Random(number)
        while not self.over.is_set():
            kind = chance.choice(self.kinds)
            kind(chance)
            self.seen[kind.__name__] += 1

    def send(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, JSON)
        reply = connection.getresponse()
        found = reply.status, reply.read()
        connection.close()
        return found

    def request(self, chance: random.Random, **fields: Any) -> tuple[Dialect, bytes, str, str]:
        """A request in a random dialect: the dialect, body, prompt and expected text."""
        prompt, length = chance.choice(PROMPTS), chance.choice(LENGTHS)
        dialect = chance.choice(SUPPORTED)
        body = json.dumps(request_of(dialect, prompt, length, **fields)).encode()
        return dialect, body, prompt, self.expected[prompt, length]

    def valid(self, chance: random.Random) -> None:
        dialect, body, prompt, expected = self.request(chance)
        status, found = self.send("POST", chance.choice(paths_of(dialect)), body)
        (text,) = dialect.texts(json.loads(found))
        assert status == 200
        assert text == (prompt + expected if name_of(dialect) == "HuggingFace" else expected)

    def streamed(self, chance: random.Random) -> None:
        dialect, body, _, expected = self.request(chance, stream=True)
        status, found = self.send("POST", chance.choice(paths_of(dialect)), body)
        assert (status, streamed_text(found.decode())) == (200, expected)

    def invalid(self, chance: random.Random) -> None:
        method, path, body, status = chance.choice(INVALID)
        assert self.send(method, path, body)[0] == status

    def slow(self, chance: random.Random) -> None:
        """Send the request and read the stream in small pieces."""
        dialect, body, _, expected = self.request(chance, stream=True)
        path = chance.choice(paths_of(dialect))
        with self.connect() as connection:
            for piece in (head(path, body)[:20], head(path, body)[20:], body[:9], body[9:]):
                connection.sendall(piece)
                self.over.wait(0.05)
            found = b""
            while piece := connection.recv(64):
                found += piece
                self.over.wait(0.001)
        assert found.startswith(b"HTTP/1.1 200 ")
        # Without the lines with chunk sizes.
        events = [line for line in found.decode().split("\n") if line.startswith("data: ")]
        assert streamed_text("\n\n".join([*events, ""])) == expected

    def disconnecting(self, chance: random.Random) -> None:
        """Disconnect during the request, while waiting, or during the stream."""
        dialect, body, _, _ = self.request(chance, stream=chance.random() < 0.5)
        path = chance.choice(paths_of(dialect))
        with self.connect() as connection:
            if chance.random() < 0.3:
                connection.sendall(head(path, body) + body[:5])
            else:
                connection.sendall(head(path, body) + body)
                if chance.random() < 0.5:
                    connection.recv(300)
            if chance.random() < 0.5:  # closing sends RST
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 60)


def head(path: str, body: bytes) -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join([*lines, "", ""]).encode()


def streamed_text(events: str) -> str:
    """The joined text of an event stream; a new dialect needs a branch for its events here."""
    parts = []
    for event in events.split("\n\n"):
        data = event.removeprefix("data: ")
        if data and data != "[DONE]":
            fields = json.loads(data)
            assert "error" not in fields
            if "choices" in fields:
                parts += [choice["text"] for choice in fields["choices"]]
            elif "token" in fields:
                parts.append(fields["token"]["text"])
    return "".join(parts)


def resident_kb(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def test_two_minutes_of_mixed_clients_cause_no_error_and_no_memory_growth(tmp_path: Path) -> None:
    needs_native()  # NumPy's sums depend on the batch
    engine = Engine.open(DEMO)
    expected = {(p, n): engine.generate(p, n).text for p in PROMPTS for n in LENGTHS}
    memory: list[int] = []
    with server(tmp_path / "log", GPT2_MODEL_URI="demo") as (process, address):
        clients = Clients(int(address.rpartition(":")[2]), expected)
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            running = [threads.submit(clients.run, number) for number in range(CONNECTIONS)]
            end = monotonic() + SOAK_S
            while monotonic() < end and not any(client.done() for client in running):
                clients.over.wait(1)
                memory.append(resident_kb(process))
            clients.over.set()
            for client in running:
                client.result()
    log = (tmp_path / "log").read_text()
    assert len(clients.seen) == len(set(clients.kinds))
    assert "InternalError" not in log
    quarter = len(memory) // 4
    before, after = max(memory[quarter : 2 * quarter]), max(memory[3 * quarter :])
    print(f"requests {dict(clients.seen)}; memory {before} kB, then {after} kB")
    assert after <= 1.05 * before
