import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2core import Engine, model
from gpt2core.startup import prefetch
from handler.app import Function
from handler.settings import Settings
from handler.telemetry import Timings
from tests.support.models import random_tensors, small_config, write_model


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Offsets and sizes of reads without flags; probes of the page cache have a flag."""
    seen: list[tuple[int, int]] = []
    preadv = os.preadv

    def logged(fd: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        if not flags:
            seen.append((offset, len(buffers[0])))
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", logged)
    return seen


def cold(*args: object) -> bool:
    return False


def finish(started: list[threading.Thread]) -> None:
    for thread in started:
        thread.join(20)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The started threads, so that tests can wait for them."""
    started: list[threading.Thread] = []

    def start(target: object, args: tuple[object, ...]) -> None:
        thread = threading.Thread(target=target, args=args)  # type: ignore[arg-type]
        started.append(thread)
        thread.start()

    monkeypatch.setattr(prefetch, "start_new_thread", start)
    return started


def test_a_file_in_the_page_cache_is_not_read(
    model_dir: Path, threads: list[threading.Thread], reads: list[tuple[int, int]]
) -> None:
    Engine.open(model_dir).logits([1])  # reads it into the page cache
    (model_dir / "model.safetensors").read_bytes()
    prefetch.begin(str(model_dir))
    if threads:
        pytest.skip("this file system does not tell what is cached")
    assert reads == []


def test_after_a_restore_files_are_read_even_if_cached(
    model_dir: Path, threads: list[threading.Thread], reads: list[tuple[int, int]]
) -> None:
    function = Function(Settings.from_environ({"GPT2_MODEL_DIR": str(model_dir)}))
    function.model.after_restore()
    assert not threads
    function.model.open(Timings())
    finish(threads)
    reads.clear()
    function.model.after_restore()
    finish(threads)
    assert {offset for offset, _ in reads} == {0}
    assert function.invoke({"prompt": "abc", "max_new_tokens": 1})["generated_text"]


def test_every_chunk_of_a_cold_file_is_read_once(
    model_dir: Path,
    threads: list[threading.Thread],
    reads: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefetch, "_is_cached", cold)
    monkeypatch.setattr(prefetch, "CHUNK_BYTES", 10_000)
    closed: list[int] = []
    close = os.close
    monkeypatch.setattr(os, "close", lambda fd: (closed.append(fd), close(fd)))
    prefetch.begin(str(model_dir))
    finish(threads)
    size = (model_dir / "model.safetensors").stat().st_size
    assert sorted(reads) == [(offset, 10_000) for offset in range(0, size, 10_000)]
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["packed.safetensors", "model.safetensors", "tokenizer.safetensors"], ["packed"]),
        (["model.safetensors", "other.safetensors"], ["model"]),
        (["model-1.safetensors", "model-2.safetensors"], ["model-1", "model-2"]),
        ([], []),
    ],
)
def test_the_files_that_the_engine_opens_are_read(
    tmp_path: Path, names: list[str], read: list[str]
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    found = prefetch._weights_files(str(tmp_path))
    assert [Path(path).stem for path in found] == read


def test_read_errors_are_ignored(
    tmp_path: Path, threads: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefetch.begin(str(tmp_path / "nothing"))
    folder = write_model(tmp_path / "model")
    monkeypatch.setattr(prefetch, "_is_cached", cold)

    def fails(*args: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    prefetch.begin(str(folder))
    finish(threads)
    assert threads


@pytest.mark.parametrize("threads_to_be_had", [0, 3])
def test_a_thread_that_cannot_start_is_ignored_and_the_file_is_closed(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, threads_to_be_had: int
) -> None:
    closed: list[int] = []
    started: list[threading.Thread] = []

    def start(target: Any, args: tuple[object, ...]) -> None:
        if len(started) == threads_to_be_had:
            raise RuntimeError("can't start new thread")
        started.append(threading.Thread(target=target, args=args))
        started[-1].start()

    close = os.close
    monkeypatch.setattr(prefetch, "start_new_thread", start)
    monkeypatch.setattr(prefetch, "_is_cached", lambda _fd, _size: False)
    monkeypatch.setattr(os, "close", lambda fd: (closed.append(fd), close(fd)))
    prefetch.begin(str(model_dir))
    finish(started)
    assert len(closed) == 1


def test_an_engine_works_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_tensors(small_config())
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    folder = write_model(tmp_path / "half", tensors=half)

    tried = []

    def none_left(target: object, _args: object) -> None:
        tried.append(target)
        raise RuntimeError("can't start new thread")

    expected = Engine.open(folder, kernels="numpy").generate_ids([1], 5)
    monkeypatch.setattr(model, "start_new_thread", none_left)
    assert Engine.open(folder, kernels="numpy").generate_ids([1], 5) == expected
    assert len(tried) == 1
