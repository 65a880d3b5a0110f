"""Models from the Hub: huggingface_hub in a new process, with a local server.

The client reads its settings when it is imported, so each test is a `python -m handler fetch`.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2core import Tokenizer
from gpt2core.files.manifest import read_manifest
from gpt2core.files.names import MANIFEST_FILE
from gpt2core.tokenizer.bpe import byte_alphabet
from tests.conftest import ROOT
from tests.support.hub_server import COMMIT, SECRET, TOKEN, HubServer
from tests.support.models import write_model, write_sharded_model
from tests.support.proxy import (
    FaultProxy,
    Handler,
    Response,
    corrupt,
    ignore_range,
    reset,
    stall,
    status,
    truncate,
)

WEIGHTS = "model.safetensors"


class Local:
    """A Hub server, proxies to its API and its CDN, and the environment of the client."""

    def __init__(self, server: HubServer, hub: FaultProxy, cdn: FaultProxy, home: Path) -> None:
        self.server, self.hub, self.cdn, self.home = server, hub, cdn, home
        server.cdn = cdn.url.removeprefix("http://")

    def fetch(
        self, root: Path, uri: str = "hf://owner/name", *options: str, **environ: str
    ) -> "Result":
        done = subprocess.run(
            [sys.executable, "-m", "handler", "fetch", uri, str(root), *options],
            capture_output=True,
            text=True,
            timeout=100,
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "HF_ENDPOINT": self.hub.url,
                "HF_HOME": str(self.home),
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "PYTHONWARNINGS": "error",
                **environ,
            },
        )
        assert SECRET not in done.stdout + done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return Result(done.returncode, done.stdout.strip(), done.stderr)


class Result:
    def __init__(self, code: int, path: str, stderr: str) -> None:
        self.code, self.path, self.stderr = code, path, stderr

    @property
    def error(self) -> str:
        """The line of the error; active downloads may log before and after it."""
        assert self.code == 1, self.stderr
        errors = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.stderr
        return errors[0]

    def holds(self, model_dir: Path, *others: str) -> bool:
        assert self.code == 0, self.stderr
        names = {path.name for path in model_dir.iterdir()} - set(others)
        return {path.name for path in Path(self.path).iterdir()} == names | {MANIFEST_FILE} and all(
            (Path(self.path) / name).read_bytes() == (model_dir / name).read_bytes()
            for name in names
        )


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """The files of a repository: a model, and files that are not needed."""
    folder = write_model(tmp_path / "repo")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "README.md").write_text("A model.")
    return folder


NOT_NEEDED = ("pytorch_model.bin", "README.md")


@pytest.fixture
def hub(repo: Path, tmp_path: Path) -> Iterator[Local]:
    with (
        HubServer(repo) as server,
        FaultProxy(server.address) as pages,
        FaultProxy(server.address) as cdn,
    ):
        yield Local(server, pages, cdn, tmp_path / "home")


def test_only_model_files_of_one_commit_are_downloaded(
    hub: Local, repo: Path, tmp_path: Path
) -> None:
    result = hub.fetch(tmp_path / "root")
    assert result.holds(repo, *NOT_NEEDED)
    manifest = read_manifest(result.path)
    assert manifest is not None
    assert manifest.source == f"hf://owner/name@{COMMIT}"
    requested = [entry.path for entry in hub.hub.log if "/resolve/" in entry.path]
    assert requested
    assert all(f"/resolve/{COMMIT}/" in path for path in requested)
    assert not [path for path in requested if path.endswith((".bin", ".md"))]
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["CURRENT", "revisions"]


@pytest.mark.parametrize("kind", ["tokenizer.json", "vocab.json"])
def test_tokenizer_and_generation_configurations_are_downloaded(
    hub: Local, repo: Path, tmp_path: Path, kind: str
) -> None:
    beside = {
        "generation_config.json": {"eos_token_id": [256, 10]},
        "tokenizer_config.json": {"add_prefix_space": True},
        "special_tokens_map.json": {"pad_token": "<pad>"},
        "added_tokens.json": {"<user>": 257},
    }
    if kind == "vocab.json":
        (repo / "tokenizer.json").unlink()
        beside |= {"vocab.json": {**byte_alphabet(), "<|endoftext|>": 256}}
        (repo / "merges.txt").write_text("#version: 0.2\n")
    for name, content in beside.items():
        (repo / name).write_text(json.dumps(content))
    result = hub.fetch(tmp_path / "root")
    assert result.holds(repo, *NOT_NEEDED)
    assert Tokenizer.open(result.path).encode("<user>a", allow_special=True) == [257, 32, 97]


def test_a_revision_can_be_selected(hub: Local, repo: Path, tmp_path: Path) -> None:
    assert hub.fetch(tmp_path / "root", f"hf://owner/name@{COMMIT}").holds(repo, *NOT_NEEDED)
    missing = hub.fetch(tmp_path / "root", "hf://owner/name@v9").error
    assert "RevisionNotFoundError" in missing


def test_an_unchanged_commit_is_not_downloaded_again(hub: Local, tmp_path: Path) -> None:
    first = hub.fetch(tmp_path / "root")
    hub.hub.log.clear()
    second = hub.fetch(tmp_path / "root")
    assert second.path == first.path
    assert "unchanged" in second.stderr
    assert [entry.path.partition("?")[0] for entry in hub.hub.log] == [
        "/api/models/owner/name/revision/main"
    ]


def test_the_token_goes_to_the_hub_and_not_to_the_cdn(
    hub: Local, repo: Path, tmp_path: Path
) -> None:
    hub.server.token = TOKEN
    assert "401" in hub.fetch(tmp_path / "root").error
    assert hub.fetch(tmp_path / "root", HF_TOKEN=TOKEN).holds(repo, *NOT_NEEDED)
    assert {entry.authorization for entry in hub.hub.log} == {None, f"Bearer {TOKEN}"}
    assert {entry.authorization for entry in hub.cdn.log} == {None}


def test_shards_arrive_with_their_index(hub: Local, repo: Path, tmp_path: Path) -> None:
    for path in repo.iterdir():
        path.unlink()
    write_sharded_model(repo)
    assert hub.fetch(tmp_path / "root").holds(repo)


@pytest.mark.parametrize("shard", ["../model.safetensors", "sub/model.safetensors"])
def test_an_index_with_paths_outside_of_the_directory_is_rejected(
    hub: Local, repo: Path, tmp_path: Path, shard: str
) -> None:
    (repo / WEIGHTS).unlink()
    (repo / f"{WEIGHTS}.index.json").write_text(f'{{"weight_map": {{"wte.weight": "{shard}"}}}}')
    assert "not a safetensors file name" in hub.fetch(tmp_path / "root").error


def test_a_repository_without_safetensors_is_an_error_with_the_fix(
    hub: Local, repo: Path, tmp_path: Path
) -> None:
    (repo / WEIGHTS).unlink()
    assert "pytorch_model.bin is not supported: convert it" in hub.fetch(tmp_path / "root").error


def test_a_missing_repository_is_an_error(hub: Local, tmp_path: Path) -> None:
    assert (
        "hf://owner/other does not exist" in hub.fetch(tmp_path / "root", "hf://owner/other").error
    )


@pytest.mark.parametrize("code", [429, 500, 503])
def test_server_errors_are_retried(hub: Local, repo: Path, tmp_path: Path, code: int) -> None:
    hub.hub.inject("GET", "/api/models/", status(code))
    hub.hub.inject("HEAD", "config.json", status(code))
    hub.cdn.inject("GET", WEIGHTS, status(code, ("Retry-After", "0")))
    assert hub.fetch(tmp_path / "root").holds(repo, *NOT_NEEDED)


def test_a_forbidden_file_is_an_error_at_once(hub: Local, tmp_path: Path) -> None:
    hub.cdn.inject("GET", WEIGHTS, status(403), times=99)
    assert "HF_TOKEN has no access" in hub.fetch(tmp_path / "root").error
    assert len([entry for entry in hub.cdn.log if entry.method == "GET"]) == 1


@pytest.mark.parametrize("fault", [truncate(5000), reset(5000)], ids=["truncated", "reset"])
def test_an_interrupted_download_is_resumed(
    hub: Local, repo: Path, tmp_path: Path, fault: object
) -> None:
    hub.cdn.inject("GET", WEIGHTS, fault)  # type: ignore[arg-type]
    assert hub.fetch(tmp_path / "root").holds(repo, *NOT_NEEDED)


def test_a_resumed_file_may_be_sent_completely(hub: Local, repo: Path, tmp_path: Path) -> None:
    hub.cdn.inject("GET", WEIGHTS, truncate(5000))
    hub.cdn.inject("GET", WEIGHTS, ignore_range())
    assert hub.fetch(tmp_path / "root").holds(repo, *NOT_NEEDED)


def test_a_restarted_file_is_hashed_from_the_start(hub: Local, repo: Path, tmp_path: Path) -> None:
    """Smaller chunks than the client's 10 MB, so that it resumes a small file."""
    ranges = []

    def complete_but_wrong(handler: Handler, response: Response) -> None:
        ranges.append(handler.headers["Range"])
        whole = handler.upstream(b"", {})
        wrong = bytearray(whole.body)
        wrong[3000] ^= 1
        handler.send(Response(200, whole.headers, bytes(wrong)))

    hub.cdn.inject("GET", WEIGHTS, truncate(50_000))
    hub.cdn.inject("GET", WEIGHTS, complete_but_wrong)
    code = (
        "import sys, huggingface_hub.constants as constants\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 8192\n"
        "from handler.__main__ import main\n"
        f"sys.exit(main(['fetch', 'hf://owner/name', {str(tmp_path / 'root')!r}]))"
    )
    environ = {"PATH": os.environ["PATH"], "HF_ENDPOINT": hub.hub.url, "HF_HOME": str(hub.home)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environ
    )
    assert ranges == ["bytes=49152-"]
    assert Result(done.returncode, done.stdout.strip(), done.stderr).holds(repo, *NOT_NEEDED)


@pytest.mark.parametrize("lambda_name", [None, "function"])
def test_hf_home_is_below_the_cache_only_on_lambda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lambda_name: str | None
) -> None:
    from handler.settings import Settings
    from handler.store.select import _set_hub_home

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_NAME", raising=False)
    if lambda_name:
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", lambda_name)
    _set_hub_home(Settings(cache_dir="/tmp/x"))
    assert os.environ.get("HF_HOME") == ("/tmp/x/huggingface" if lambda_name else None)
    os.environ.pop("HF_HOME", None)


def test_a_stalled_server_times_out(hub: Local, repo: Path, tmp_path: Path) -> None:
    hub.cdn.inject("GET", WEIGHTS, stall(5000))
    done = hub.fetch(tmp_path / "root", HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert done.holds(repo, *NOT_NEEDED)


def test_a_corrupted_response_is_downloaded_again(hub: Local, repo: Path, tmp_path: Path) -> None:
    hub.cdn.inject("GET", WEIGHTS, corrupt(1234))
    assert hub.fetch(tmp_path / "root").holds(repo, *NOT_NEEDED)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_wrong_bytes_of_the_right_size_are_rejected_and_removed(
    hub: Local, tmp_path: Path, name: str
) -> None:
    (hub.cdn if name == WEIGHTS else hub.hub).inject("GET", name, corrupt(20), times=99)
    error = hub.fetch(tmp_path / "root").error
    assert name in error
    assert "both were removed" in error
    assert not list((tmp_path / "root").rglob(name))
    assert not (tmp_path / "root" / "CURRENT").exists()


def test_offline_mode_uses_the_local_cache_without_requests(
    hub: Local, repo: Path, tmp_path: Path
) -> None:
    nothing = hub.fetch(tmp_path / "root", HF_HUB_OFFLINE="1").error
    assert "HF_HUB_OFFLINE" in nothing
    assert hub.hub.log == []
    fill = "from huggingface_hub import snapshot_download as s; s('owner/name')"
    environ = {
        "PATH": os.environ["PATH"],
        "HF_ENDPOINT": hub.hub.url,
        "HF_HOME": str(hub.home),
    }
    subprocess.run([sys.executable, "-c", fill], check=True, env=environ, capture_output=True)
    hub.hub.log.clear()
    assert hub.fetch(tmp_path / "root", HF_HUB_OFFLINE="1").holds(repo, *NOT_NEEDED)
    assert hub.hub.log == []


def test_a_pin_is_compared_with_the_hubs_digest_before_the_download(
    hub: Local, repo: Path, tmp_path: Path
) -> None:
    digest = hashlib.sha256((repo / WEIGHTS).read_bytes()).hexdigest()
    good = hub.fetch(tmp_path / "good", "hf://owner/name", "--sha256", digest)
    assert good.holds(repo, *NOT_NEEDED)
    hub.cdn.log.clear()
    bad = hub.fetch(tmp_path / "bad", "hf://owner/name", "--sha256", "0" * 64)
    assert f"has the SHA-256 {digest}" in bad.error
    assert hub.cdn.log == []


def test_a_cold_start_writes_only_below_the_cache_directory(hub: Local, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "handler", "invoke", "events/direct-generate.json"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path / "home"),
            "HF_ENDPOINT": hub.hub.url,
            "GPT2_MODEL_DIR": str(tmp_path / "none"),
            "GPT2_MODEL_URI": "hf://owner/name",
            "GPT2_CACHE_DIR": str(tmp_path / "cache"),
        },
    )
    assert json.loads(done.stdout)["model_source"] == "hub", done.stderr
    assert not (tmp_path / "home").exists()
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {"models", "huggingface"}


def test_a_server_that_is_not_the_hub_is_reported_at_once(hub: Local, tmp_path: Path) -> None:
    hub.hub.inject("HEAD", "config.json", status(200), times=99)
    assert "check HF_ENDPOINT" in hub.fetch(tmp_path / "root").error


def test_warnings_contain_no_signatures(hub: Local, repo: Path, tmp_path: Path) -> None:
    hub.cdn.inject("GET", WEIGHTS, truncate(5000))
    done = hub.fetch(tmp_path / "root", HF_HUB_VERBOSITY="debug")
    assert "/cdn/model.safetensors?…" in done.stderr
    assert done.holds(repo, *NOT_NEEDED)


def change_info(change: Callable[[dict[str, Any]], None]) -> Callable[[Handler, Response], None]:
    """A mirror whose model info differs from the Hub's."""

    def fault(handler: Handler, response: Response) -> None:
        info = json.loads(response.body)
        change(info)
        handler.send(
            Response(200, [("Content-Type", "application/json")], json.dumps(info).encode())
        )

    return fault


def without(*fields: str) -> Callable[[dict[str, Any]], None]:
    def change(info: dict[str, Any]) -> None:
        for field in fields:
            info.pop(field, None)
            for sibling in info.get("siblings", ()):
                sibling.pop(field, None)

    return change


def without_digests(info: dict[str, Any]) -> None:
    for sibling in info["siblings"]:
        sibling.get("lfs", {}).pop("sha256", None)


def of_another_type(info: dict[str, Any]) -> None:
    info["siblings"] = {"unexpected": 1}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(without("size"), id="size"),
        pytest.param(without("blobId"), id="blobId"),
        pytest.param(without("lfs"), id="lfs"),
        pytest.param(without("size", "blobId", "lfs"), id="all of a file"),
        pytest.param(without("siblings"), id="siblings"),
        pytest.param(without("siblings", "sha"), id="siblings and commit"),
        pytest.param(without("sha"), id="commit"),
        pytest.param(without_digests, id="digests"),
        pytest.param(of_another_type, id="type"),
    ],
)
def test_metadata_that_a_mirror_omits_is_requested_per_file(
    hub: Local, repo: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    hub.hub.inject("GET", "/api/models/", change_info(change), times=99)
    result = hub.fetch(tmp_path / "root")
    assert result.holds(repo, *NOT_NEEDED)
    manifest = read_manifest(result.path)
    assert manifest is not None
    assert manifest.source == f"hf://owner/name@{COMMIT}"


def test_a_mirror_without_sizes_is_an_error_that_names_the_setting(
    hub: Local, tmp_path: Path
) -> None:
    def no_commit(handler: Handler, response: Response) -> None:
        kept = [(k, v) for k, v in response.headers if k.lower() not in ("x-repo-commit", "etag")]
        handler.send(response._replace(headers=kept))

    hub.hub.inject("GET", "/api/models/", change_info(without("siblings")), times=99)
    hub.hub.inject("HEAD", "", no_commit, times=99)
    assert "check HF_ENDPOINT" in hub.fetch(tmp_path / "root").error


def test_a_web_page_instead_of_a_file_is_an_error_that_names_the_setting(
    hub: Local, tmp_path: Path
) -> None:
    def page(handler: Handler, response: Response) -> None:
        handler.send(Response(200, [("Content-Type", "text/html")], b"<html>a portal</html>"))

    hub.hub.inject("GET", "", page, times=99)
    hub.hub.inject("HEAD", "", page, times=99)
    assert "check HF_ENDPOINT" in hub.fetch(tmp_path / "root").error
