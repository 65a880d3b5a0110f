"""Builds the image, and runs containers of it."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.conftest import ROOT
from tests.support.ports import wait_until

PATH = "/2015-03-31/functions/function/invocations"
# Runs inside the container, which has no network: sends the events from stdin to loopback.
_DRIVER = f"""
import json, sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen
replies = {{}}
for name, event in json.load(sys.stdin).items():
    request = Request("http://127.0.0.1:8080{PATH}", json.dumps(event).encode())
    try:
        replies[name] = json.load(urlopen(request, timeout=60))
    except HTTPError as error:
        replies[name] = json.load(error)
json.dump(replies, sys.stdout)
"""


def docker(*arguments: str | Path, stdin: str | None = None) -> str:
    """Run a Docker command, which must succeed; returns its output."""
    done = subprocess.run(
        ["docker", *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def build(name: str, context: Path, *options: str, **environ: str) -> str:
    """Build the image from a checkout; returns its id."""
    done = subprocess.run(
        [context / "scripts" / "build_image.sh", name, *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environ,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def sam_build(context: Path, target: Path, arch: str, *options: str) -> set[str]:
    """Run `sam build` in a checkout whose image is built for `arch`; returns the ids of the images.

    The build steps are cached. SAM cannot set another base, so a stand-in is tagged with its name.
    """
    base = re.findall(r"^ARG BASE=(.+)$", (context / "Dockerfile").read_text(), re.MULTILINE)[0]
    stand_in = f"gpt2-stand-in-base-{arch}"
    has_stand_in = bool(docker("images", "-q", stand_in))
    if has_stand_in:
        docker("tag", stand_in, base)
    command = [ROOT / ".venv-dev" / "bin" / "sam", "build", "--build-dir", target, *options]
    environ = {"SAM_CLI_TELEMETRY": "0", "HOME": str(target.parent)}
    try:
        done = subprocess.run(
            [*command, "--region", "eu-central-1"],
            capture_output=True,
            text=True,
            check=False,
            cwd=context,
            env=os.environ | environ,
        )
        assert done.returncode == 0, done.stderr
        assert "Build Succeeded" in done.stdout + done.stderr
    finally:
        if has_stand_in:
            docker("rmi", base)
    built = "".join(path.read_text() for path in target.rglob("template.yaml"))
    names = re.findall(r"ImageUri: (\S+)", built)
    assert len(names) == 3  # the functions for requests, batches and filling the volume
    return {docker("inspect", "-f", "{{.Id}}", name) for name in names}


def checkout(target: Path) -> Path:
    """Copy the tracked and new files of the project, as a clean clone has them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        source = ROOT / name
        if source.exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(source.read_bytes())
            (target / name).chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
    return target


class Container:
    """A running container."""

    def __init__(self, name: str) -> None:
        self.name = name

    def invoke(self, **events: Any) -> dict[str, Any]:
        """Send events to the invocations path inside the container; returns replies by name."""
        command = ("exec", "-i", self.name, "python3", "-S", "-c", _DRIVER)
        replies = json.loads(docker(*command, stdin=json.dumps(events)))
        assert isinstance(replies, dict)
        return replies

    def logs(self) -> str:
        """The output so far."""
        done = subprocess.run(
            ["docker", "logs", self.name], capture_output=True, text=True, check=True
        )
        return done.stdout + done.stderr

    def wait(self) -> None:
        """Wait until the container listens on port 8080."""
        code = "import socket; socket.create_connection(('127.0.0.1', 8080), 1)"
        command = ["docker", "exec", self.name, "python3", "-S", "-c", code]

        def listens() -> bool:
            return not subprocess.run(command, capture_output=True, check=False).returncode

        wait_until(listens)


@contextmanager
def container(
    image: str, *options: str | Path, command: Sequence[str] = (), network: str = "none"
) -> Iterator[Container]:
    """Run the image without network, read-only except /tmp, with 1,024 MB of memory."""
    strict = (f"--network={network}", "--read-only", "--tmpfs=/tmp", "--memory=1024m")
    name = docker("run", "-d", *strict, *options, image, *command)
    try:
        running = Container(name)
        running.wait()
        yield running
    finally:
        docker("rm", "-f", name)


def post(url: str, body: Any) -> Any:
    """Send a request over HTTP; returns the JSON of the reply."""
    with urlopen(Request(url, json.dumps(body).encode()), timeout=60) as reply:
        return json.load(reply)
