"""The function under `sam local`: every event file, and the HTTP API."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2core.pack import pack
from tests.conftest import DEMO, ROOT
from tests.support.containers import build, checkout, docker, post, sam_build
from tests.support.emulator import NAMES, assert_answered
from tests.support.ports import free_ports, wait_for

SAM = ROOT / ".venv-dev" / "bin" / "sam"
IMAGE = "gpt2-lambda-test-function"
pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SAM.exists(), reason="SAM is not installed: `make test` does"),
]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The template as written by `sam build`, with the name of a built image."""
    clone = checkout(tmp_path_factory.mktemp("clone"))
    text = (clone / "template.yaml").read_text()
    path = clone / "built.yaml"
    path.write_text(
        text.replace("PackageType: Image", f"PackageType: Image\n      ImageUri: {IMAGE}")
    )
    try:
        build(IMAGE, clone, "--target", "function")
        yield path
    finally:
        images = ["docker", "images", "-q", "--filter", f"reference={IMAGE}*"]
        found = subprocess.run(images, capture_output=True, text=True, check=False).stdout.split()
        subprocess.run(["docker", "rmi", "-f", *found], capture_output=True, check=False)


def sam(template: Path, *arguments: str) -> list[str]:
    options = ["--skip-pull-image", "--region", "eu-central-1", "-t", str(template)]
    return [str(SAM), "local", *arguments, *options]


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = str(tmp_path_factory.mktemp("home"))
    return {**os.environ, "SAM_CLI_TELEMETRY": "0", "HOME": home}


def test_sam_build_makes_a_working_image(image: str, clone: Path, tmp_path: Path) -> None:
    arch = docker("inspect", "-f", "{{.Architecture}}", image)
    options = [] if arch == "amd64" else ["--config-env", arch]
    for built in sam_build(clone, tmp_path / "built", arch, *options):
        event = ("invoke", "events/direct-generate.json")
        reply = docker("run", "--rm", "--network=none", "--read-only", built, *event)
        assert json.loads(reply)["generated_text"]


@pytest.mark.parametrize("name", NAMES)
def test_sam_local_invoke_replies_to_every_event(
    template: Path, environ: dict[str, str], name: str
) -> None:
    command = sam(template, "invoke", "Function", "-e", str(ROOT / "events" / f"{name}.json"))
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.stdout, done.stderr
    assert_answered(name, json.loads(done.stdout))


def test_sam_local_mounts_a_local_directory_as_the_volume(
    template: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    # SAM mounts only a debugger path into images: see docs/image.md.
    pack(DEMO, tmp_path / "packed")
    for folder in (tmp_path, tmp_path / "packed"):
        folder.chmod(0o755)
    variables = {"Parameters": {"GPT2_MODEL_DIR": "/tmp/lambci_debug_files"}}
    (tmp_path / "env.json").write_text(json.dumps(variables))
    (port,) = free_ports(1)
    command = sam(template, "invoke", "Function", "-e", str(ROOT / "events/direct-generate.json"))
    command += ["-d", str(port), "--debugger-path", str(tmp_path / "packed")]
    command += ["--env-vars", str(tmp_path / "env.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.stdout, done.stderr
    assert json.loads(done.stdout)["model_source"] == "volume"


def test_sam_local_start_api_serves_http(
    template: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    with (tmp_path / "log").open("wb") as log:
        command = sam(template, "start-api", "--port", str(port))
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        try:
            wait_for(port, server)
            reply = post(
                f"http://127.0.0.1:{port}/generate", {"prompt": "The", "max_new_tokens": 2}
            )
        finally:
            server.terminate()
            server.wait(60)
    assert reply["usage"]["completion_tokens"] == 2
