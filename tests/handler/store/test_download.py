"""Cold starts that download, from event to reply, with S3 behind a proxy that injects faults."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handler.app import Function
from handler.settings import Settings
from handler.store import transfer
from handler.store.transfer import Display, DownloadState, Stopped
from tests.conftest import ROOT
from tests.support.events import Context, load_event
from tests.support.models import script_for, write_model, write_scripted_model
from tests.support.proxy import FaultProxy, corrupt, stall, status
from tests.support.s3_server import CREDENTIALS, SECRET_KEY, Bucket
from tests.support.terminal import run_on_terminal

WEIGHTS = "model.safetensors"
PROMPT = {"prompt": "abc", "max_new_tokens": 5}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FIRST_PAUSE_S", 0.001)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that continues `abc` with `hello`."""
    return write_answering_model(b"hello", tmp_path_factory.mktemp("model") / "answering")


def write_answering_model(text: bytes, folder: Path) -> Path:
    return write_scripted_model(folder, script_for("abc", text), n_positions=64)


@pytest.fixture
def uri(bucket: Bucket, model_dir: Path) -> str:
    return bucket.upload(model_dir, "m")


@pytest.fixture
def expected() -> str:
    """The text of the model in the bucket."""
    return "hello"


def function_for(uri: str, tmp_path: Path, **more: Any) -> Function:
    settings = {"model_dir": str(tmp_path / "volume"), "cache_dir": str(tmp_path / "cache")}
    return Function(Settings(**{**settings, "model_uri": uri, **more}))


def cold_start(event: str, environ: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """A cold invoke in a new process."""
    return subprocess.run(
        [sys.executable, "-m", "handler", "invoke", f"events/{event}.json"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ},
    )


def test_the_first_invoke_downloads_and_reports_the_source(
    uri: str, proxy: FaultProxy, tmp_path: Path, expected: str
) -> None:
    reply = function_for(uri, tmp_path).invoke(PROMPT)
    assert reply["generated_text"] == expected
    assert (reply["model"], reply["model_source"]) == (uri, "s3")
    assert reply["timings_ms"]["source"] > 0
    over_http = function_for(uri, tmp_path).invoke(load_event("url-generate"))
    assert 'source;desc="cache";dur=' in over_http["headers"]["Server-Timing"]


def test_the_second_cold_start_sends_no_request(
    uri: str, proxy: FaultProxy, tmp_path: Path, expected: str
) -> None:
    environ = {
        **CREDENTIALS,
        "AWS_ENDPOINT_URL_S3": proxy.url,
        "GPT2_MODEL_URI": uri,
        "GPT2_CACHE_DIR": str(tmp_path / "cache"),
        "GPT2_MODEL_DIR": str(tmp_path / "none"),
    }
    first = cold_start("direct-generate", environ)
    assert json.loads(first.stdout)["model_source"] == "s3"
    assert proxy.log
    proxy.log.clear()
    second = cold_start("direct-generate", environ)
    assert json.loads(second.stdout)["model_source"] == "cache"
    assert proxy.log == []
    assert SECRET_KEY not in first.stderr + second.stderr


def test_an_invalid_volume_is_logged_and_the_uri_is_used(
    uri: str,
    proxy: FaultProxy,
    tmp_path: Path,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    volume = write_model(tmp_path / "volume", seed=3)
    (volume / WEIGHTS).write_bytes(b"half a file")
    reply = function_for(uri, tmp_path).invoke(PROMPT)
    assert (reply["generated_text"], reply["model_source"]) == (expected, "s3")
    warnings = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [w["type"] for w in warnings if w["level"] == "WARNING"] == ["CheckpointError"]


@pytest.mark.parametrize("current", ["missing", ""])
def test_a_dangling_current_file_is_logged_and_the_uri_is_used(
    uri: str,
    proxy: FaultProxy,
    tmp_path: Path,
    expected: str,
    current: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "CURRENT").write_text(current)
    assert function_for(uri, tmp_path).invoke(PROMPT)["generated_text"] == expected
    assert "which is not in revisions" in capsys.readouterr().err


def test_the_error_includes_the_volume_and_the_uri(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "CURRENT").write_text("missing")
    proxy.inject("GET", "", status(403), times=99)
    proxy.inject("HEAD", "", status(403), times=99)
    error = function_for(uri, tmp_path).invoke(PROMPT)["error"]
    assert error["type"] == "AccessDenied"
    assert "s3:GetObject" in error["message"]
    assert "CURRENT names 'missing'" in error["message"]


def test_a_failed_download_is_a_503_and_the_next_invoke_retries(
    uri: str, proxy: FaultProxy, tmp_path: Path, expected: str
) -> None:
    function = function_for(uri, tmp_path)
    proxy.inject("GET", WEIGHTS, status(503), times=8)
    reply = function.invoke(load_event("url-generate"))
    assert reply["statusCode"] == 503
    error = json.loads(reply["body"])["error"]
    assert error["type"] == "DownloadFailed"
    assert "8 attempts" in error["message"]
    assert function.invoke(PROMPT)["generated_text"] == expected


def test_an_invoke_replies_before_its_timeout(
    uri: str, proxy: FaultProxy, tmp_path: Path, expected: str
) -> None:
    function = function_for(uri, tmp_path)
    proxy.inject("GET", WEIGHTS, stall(100))
    error = function.invoke(PROMPT, Context(900))["error"]
    assert error["type"] == "DownloadFailed"
    assert "the deadline passed" in error["message"]
    assert function.invoke(PROMPT)["generated_text"] == expected


def test_a_truncated_cached_copy_is_downloaded_again(
    uri: str, proxy: FaultProxy, tmp_path: Path, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    function_for(uri, tmp_path).invoke(PROMPT)
    (weights,) = (tmp_path / "cache").rglob(WEIGHTS)
    os.truncate(weights, 1000)
    reply = function_for(uri, tmp_path).invoke(PROMPT)
    assert (reply["generated_text"], reply["model_source"]) == (expected, "s3")
    assert "has 1000 bytes" in capsys.readouterr().err


def test_a_corrupted_cached_copy_is_downloaded_again(
    uri: str, proxy: FaultProxy, tmp_path: Path, expected: str
) -> None:
    function_for(uri, tmp_path).invoke(PROMPT)
    (weights,) = (tmp_path / "cache").rglob(WEIGHTS)
    with weights.open("r+b") as file:
        file.write(b"\xff" * 8)
    reply = function_for(uri, tmp_path).invoke(PROMPT)
    assert (reply["generated_text"], reply["model_source"]) == (expected, "s3")


def test_an_intact_cached_copy_is_kept_after_a_transient_error(
    uri: str, proxy: FaultProxy, tmp_path: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2core.files import safetensors

    function_for(uri, tmp_path).invoke(PROMPT)
    proxy.log.clear()
    with monkeypatch.context() as patch:

        def no_memory(*args: object, **options: object) -> None:
            raise OSError(12, "Cannot allocate memory")

        patch.setattr(safetensors.mmap, "mmap", no_memory)
        error = function_for(uri, tmp_path).invoke(PROMPT)["error"]
        assert error["type"] == "CheckpointError"
    assert proxy.log == []
    assert function_for(uri, tmp_path).invoke(PROMPT)["model_source"] == "cache"


def test_a_cached_copy_must_have_the_pinned_digest(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    function_for(uri, tmp_path).invoke(PROMPT)
    error = function_for(uri, tmp_path, model_sha256="0" * 64).invoke(PROMPT)["error"]
    assert (error["type"], error["param"]) == ("DigestMismatch", "GPT2_MODEL_SHA256")


def test_populating_downloads_to_the_volume_once(
    uri: str, proxy: FaultProxy, tmp_path: Path, expected: str
) -> None:
    (tmp_path / "volume").mkdir()
    function = function_for(uri, tmp_path, model_dir_named=True)
    first = function.invoke(load_event("direct-populate"))
    assert first["status"] == "populated"
    assert (tmp_path / "volume" / "CURRENT").read_text().strip() == first["revision"]
    assert first["bytes"] > 10_000
    assert first["uri"] == uri
    assert function.invoke(load_event("direct-populate"))["status"] == "unchanged"
    reply = function.invoke(PROMPT)
    assert (reply["generated_text"], reply["model_source"]) == (expected, "volume")
    assert reply["model"] == f"volume@{first['revision'][:12]}"


def test_populating_with_a_new_model_keeps_the_old_one_for_its_readers(
    uri: str, bucket: Bucket, proxy: FaultProxy, tmp_path: Path, expected: str
) -> None:
    (tmp_path / "volume").mkdir()
    function = function_for(uri, tmp_path)
    function.invoke({"populate": True})
    assert function.invoke(PROMPT)["generated_text"] == expected
    bucket.upload(write_answering_model(b"other", tmp_path / "other"), "m")
    assert function.invoke({"populate": True})["status"] == "populated"
    assert function.invoke(PROMPT)["generated_text"] == expected
    assert function_for(uri, tmp_path).invoke(PROMPT)["generated_text"] == "other"


def test_populating_needs_a_volume_and_a_uri_and_is_not_available_over_http(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    error = function_for(uri, tmp_path).invoke({"populate": True})["error"]
    assert (error["type"], error["param"]) == ("ModelUnavailable", "GPT2_MODEL_DIR")
    (tmp_path / "volume").mkdir()
    error = function_for("demo", tmp_path).invoke({"populate": True})["error"]
    assert (error["type"], error["param"]) == ("BadRequest", "GPT2_MODEL_URI")
    event = load_event("url-generate") | {"body": '{"populate": true}', "isBase64Encoded": False}
    assert function_for(uri, tmp_path).invoke(event)["statusCode"] == 400


def test_neither_prompt_nor_credentials_are_logged(
    uri: str, proxy: FaultProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = {"prompt": "a prompt not to be logged"}
    proxy.inject("GET", WEIGHTS, corrupt(0), times=99)
    assert function_for(uri, tmp_path).invoke(prompt)["error"]["type"] == "DigestMismatch"
    logged = capsys.readouterr().err
    assert logged
    for secret in (prompt["prompt"], SECRET_KEY, "Signature", CREDENTIALS["AWS_ACCESS_KEY_ID"]):
        assert secret not in logged


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    point = tmp_path / "small"
    point.mkdir()
    mount(point, "-t", "tmpfs", "-o", "size=64k", "none")
    yield point
    subprocess.run(["umount", "-l", point], check=True)


def mount(point: Path, *arguments: str) -> None:
    done = subprocess.run(["mount", *arguments, point], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


def test_insufficient_space_is_reported_before_the_download(
    uri: str, proxy: FaultProxy, mounted: Path, tmp_path: Path
) -> None:
    error = function_for(uri, tmp_path, cache_dir=str(mounted)).invoke(PROMPT)["error"]
    assert error["type"] == "InsufficientStorage"
    assert "EphemeralStorage to 512" in error["message"]
    assert not [entry for entry in proxy.log if entry.range]
    assert not (mounted / "incoming").exists()


def test_a_disk_that_fills_up_during_the_download_is_an_error(
    uri: str,
    proxy: FaultProxy,
    mounted: Path,
    tmp_path: Path,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from handler.store.publish import Staging

    # As if another writer used the space after the check.
    monkeypatch.setattr(Staging, "check_free_space", lambda *args: None)
    error = function_for(uri, tmp_path, cache_dir=str(mounted)).invoke(PROMPT)["error"]
    assert error["type"] == "InsufficientStorage"
    assert "is full" in error["message"]
    assert not list(mounted.rglob("CURRENT"))
    assert not list(mounted.rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=10m", mounted], check=True)
    reply = function_for(uri, tmp_path, cache_dir=str(mounted)).invoke(PROMPT)
    assert reply["generated_text"] == expected


def test_a_read_only_volume_cannot_be_populated_and_stays_unchanged(
    uri: str, proxy: FaultProxy, mounted: Path, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    error = function_for(uri, tmp_path, model_dir=str(mounted)).invoke({"populate": True})["error"]
    assert error["type"] == "NotWritable"
    assert "Read-only" in error["message"]


def test_a_read_only_cache_is_an_error_that_names_it(
    uri: str, proxy: FaultProxy, mounted: Path, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    error = function_for(uri, tmp_path, cache_dir=str(mounted)).invoke(PROMPT)["error"]
    assert error["type"] == "NotWritable"
    assert str(mounted) in error["message"]


def test_a_cache_on_a_path_that_is_a_file_is_an_error(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    error = function_for(uri, tmp_path).invoke(PROMPT)["error"]
    assert error["type"] == "NotWritable"


def test_fetch_prints_the_directory_and_logs_progress(
    uri: str, proxy: FaultProxy, tmp_path: Path, model_dir: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "handler", "fetch", uri, str(tmp_path / "new" / "volume")],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    revision = Path(done.stdout.strip())
    assert (revision / WEIGHTS).read_bytes() == (model_dir / WEIGHTS).read_bytes()
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["message"] == "downloaded"
    assert last["bytes"] == last["total"] > 10_000


def test_fetch_shows_a_progress_bar_on_a_terminal(
    uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    args = ("handler", "fetch", uri, str(tmp_path / "volume"))
    code, shown = run_on_terminal(*args, **os.environ)
    assert code == 0
    assert uri in shown
    assert " MB in " in shown
    assert "{" not in shown


def test_the_progress_bar_continues_while_the_model_is_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    state, display = DownloadState(), Display("s3://bucket/model")
    state.total = 100
    state.advance(100)
    display.show(state)
    state.show_packing(3, 4)
    display.show(state)
    assert display._bar.n / display._bar.total == 0.75
    assert display._bar.desc == "s3://bucket/model, packing"
    display.close(state, finished=False)


def test_packing_stops_when_the_download_is_cancelled() -> None:
    state = DownloadState()
    state.show_packing(1, 4)
    state.stop()
    with pytest.raises(Stopped):
        state.show_packing(2, 4)


@pytest.mark.parametrize(
    "arguments",
    [
        ("http://example.com/x", "DIR"),
        ("s3://UPPER/x", "DIR"),
        ("hf://gpt2", "DIR"),
        ("hf://../..", "DIR"),
        ("s3://bucket/x",),
        ("s3://bucket/x", "DIR", "--sha256", "abc"),
    ],
)
def test_bad_usage_of_fetch_exits_with_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    from handler.__main__ import main

    with pytest.raises(SystemExit) as caught:
        main(["fetch", *(str(tmp_path) if a == "DIR" else a for a in arguments)])
    assert caught.value.code == 2


def test_a_failed_fetch_exits_with_1_and_one_error_line(
    uri: str, proxy: FaultProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from handler.__main__ import main

    assert main(["fetch", uri, str(tmp_path), "--sha256", "0" * 64]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: s3://")
