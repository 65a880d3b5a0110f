"""Killed and concurrent downloads in separate processes: `make test-slow`."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler.settings import Settings
from handler.store.revisions import resolve, verify
from handler.store.select import cache_path
from tests.conftest import ROOT
from tests.support.hub_server import HubServer
from tests.support.models import script_for, write_scripted_model
from tests.support.proxy import FaultProxy
from tests.support.s3_server import CREDENTIALS, Bucket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# A cold start with many small parts, so that several are active when it is killed.
COLD_START = """
import sys
import handler.store.s3
handler.store.s3.PART_BYTES = 1 << 18
from handler.app import lambda_handler
reply = lambda_handler(%s)
print(reply.get("generated_text") or reply.get("status") or reply)
"""
GENERATE = COLD_START % {"prompt": "abc", "max_new_tokens": 5}
POPULATE = COLD_START % {"populate": True}
WRITERS = 16


def write_answering_model(text: bytes, folder: Path) -> Path:
    return write_scripted_model(folder, script_for("abc", text), n_positions=64)


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_answering_model(b"hello", tmp_path_factory.mktemp("models") / "hello")


def start(code: str, environ: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", **environ},
    )


def output_of(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out.strip()


def is_clean(root: Path, revisions: int = 1) -> bool:
    """Whether there are only complete revisions and CURRENT."""
    assert sorted(path.name for path in root.iterdir()) == ["CURRENT", "revisions"]
    assert len(list((root / "revisions").iterdir())) == revisions
    for revision in (root / "revisions").iterdir():
        verify(str(revision))
    return True


def kill_and_recover(
    uri: str,
    environ: dict[str, str],
    tmp_path: Path,
    upstream: str,
    total: int,
    seed: int,
    hub: HubServer | None = None,
) -> str:
    """Kill a download at a pseudo-random offset; returns the reply of the next cold start."""
    draw = random.Random(seed)
    cache = tmp_path / str(seed)
    root = Path(cache_path(Settings(cache_dir=str(cache)), uri))
    environ = environ | {"GPT2_MODEL_URI": uri, "GPT2_CACHE_DIR": str(cache)}
    environ["GPT2_MODEL_DIR"] = str(tmp_path / "none")

    def environ_for(proxy: FaultProxy) -> dict[str, str]:
        if hub:  # another origin for the client, but the same proxy
            hub.cdn = f"localhost:{proxy.server_port}"
        return environ | {"AWS_ENDPOINT_URL_S3": proxy.url, "HF_ENDPOINT": proxy.url}

    with FaultProxy(upstream) as proxy:
        processes: list[subprocess.Popen[str]] = []
        proxy.kill_after(draw.randrange(1, total), lambda: processes[0].pid)
        processes.append(start(GENERATE, environ_for(proxy)))
        processes[0].communicate(timeout=100)
        assert processes[0].returncode == -9
    assert resolve(str(root)) is None  # nothing was published
    with FaultProxy(upstream) as proxy:
        text = output_of(start(GENERATE, environ_for(proxy)))
    assert is_clean(root)
    stray = [p for p in cache.rglob("*") if p.name.endswith((".part", ".incomplete", ".hub"))]
    assert stray == []
    return text


@pytest.mark.parametrize("group", range(16))
def test_a_killed_download_from_s3_is_not_opened_and_the_next_one_recovers(
    moto: str, bucket: Bucket, hello: Path, tmp_path: Path, group: int
) -> None:
    uri = bucket.upload(hello, "m")
    total = sum(path.stat().st_size for path in hello.iterdir())
    for seed in range(10 * group, 10 * group + 10):
        assert kill_and_recover(uri, CREDENTIALS, tmp_path, moto, total, seed) == "hello"


@pytest.fixture
def hub(hello: Path) -> Iterator[HubServer]:
    with HubServer(hello) as server:
        yield server


@pytest.mark.parametrize("group", range(4))
def test_a_killed_download_from_the_hub_is_not_opened_and_the_next_one_recovers(
    hub: HubServer, hello: Path, tmp_path: Path, group: int
) -> None:
    total = sum(path.stat().st_size for path in hello.iterdir())
    for seed in range(1000 + 10 * group, 1010 + 10 * group):
        text = kill_and_recover("hf://owner/name", {}, tmp_path, hub.address, total, seed, hub)
        assert text == "hello"


def many(code: str, environ: dict[str, str], root: Path) -> list[str]:
    """The outputs of concurrent processes, and the states of `root` meanwhile."""
    processes = [start(code, environ) for _ in range(WRITERS)]
    while any(process.poll() is None for process in processes):
        if (root / "incoming").exists():
            try:
                names = {path.name for path in (root / "incoming").iterdir()}
            except FileNotFoundError:
                continue
            assert len(names) <= WRITERS
        try:
            next(p for p in processes if p.poll() is None).wait(0.02)
        except (StopIteration, subprocess.TimeoutExpired):
            continue
    return [output_of(process) for process in processes]


def test_concurrent_cold_starts_on_an_empty_cache_all_succeed(
    moto: str, bucket: Bucket, hello: Path, tmp_path: Path
) -> None:
    uri = bucket.upload(hello, "m")
    environ = CREDENTIALS | {
        "AWS_ENDPOINT_URL_S3": f"http://{moto}",
        "GPT2_MODEL_URI": uri,
        "GPT2_MODEL_DIR": str(tmp_path / "none"),
        "GPT2_CACHE_DIR": str(tmp_path / "cache"),
    }
    root = Path(cache_path(Settings(cache_dir=str(tmp_path / "cache")), uri))
    assert many(GENERATE, environ, root) == ["hello"] * WRITERS
    assert is_clean(root)


def test_concurrent_populates_of_one_volume_all_succeed(
    moto: str, bucket: Bucket, hello: Path, tmp_path: Path
) -> None:
    (tmp_path / "volume").mkdir()
    environ = CREDENTIALS | {
        "AWS_ENDPOINT_URL_S3": f"http://{moto}",
        "GPT2_MODEL_URI": bucket.upload(hello, "m"),
        "GPT2_MODEL_DIR": str(tmp_path / "volume"),
        "GPT2_CACHE_DIR": str(tmp_path / "cache"),
    }
    statuses = many(POPULATE, environ, tmp_path / "volume")
    assert set(statuses) <= {"populated", "unchanged"}
    assert "populated" in statuses
    assert is_clean(tmp_path / "volume")
    assert output_of(start(GENERATE, environ)) == "hello"


READ_OFTEN = """
from handler.app import Function
from handler.settings import Settings
seen = []
while len(seen) < 60 or len({*seen}) < 2 and len(seen) < 5000:  # until there was something to see
    function = Function(Settings(model_dir=%r, model_dir_named=True))
    function.log_invoke = lambda *_: None  # the pipe is read at the end
    seen.append(function.invoke({"prompt": "abc", "max_new_tokens": 5}).get("generated_text"))
print(*seen, sep="\\n")
"""


def test_readers_always_see_a_complete_model_while_others_are_published(
    proxy: FaultProxy, bucket: Bucket, hello: Path, tmp_path: Path
) -> None:
    from handler.store.download import to_directory

    volume = tmp_path / "volume"
    uris = [
        bucket.upload(hello, "hello"),
        bucket.upload(write_answering_model(b"other", tmp_path / "other"), "other"),
    ]
    to_directory(uris[0], str(volume))
    readers = [start(READ_OFTEN % str(volume), {}) for _ in range(4)]
    turns = 0
    while any(reader.poll() is None for reader in readers):
        turns += 1
        to_directory(uris[turns % 2], str(volume))
    texts = [text for reader in readers for text in output_of(reader).splitlines()]
    assert len(texts) >= 240
    assert set(texts) == {"hello", "other"}
    assert is_clean(volume, revisions=2)
