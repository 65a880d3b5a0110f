"""AWS's Lambda runtime interface emulator, without Docker, with this project's runtime or AWS's.

The binary is part of the SAM CLI, which `make test` installs in `.venv-dev`.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from select import select
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tests.conftest import ROOT
from tests.support.ports import free_ports, wait_for

MACHINE = {"x86_64": "x86_64", "aarch64": "arm64"}.get(platform.machine(), "")
OURS = ("bootstrap.py",)
THEIRS = ("-m", "awslambdaric", "handler.app.lambda_handler")
NAMES = sorted(p.stem for p in (ROOT / "events").glob("*.json"))


def assert_answered(name: str, reply: Any) -> None:
    """Assert that the emulator's reply to an event file is what its source expects."""
    kind = name.split("-")[0]
    if kind == "unsupported":
        assert reply["errorType"] == "UnsupportedEvent"
    elif name == "batch-s3-test":
        assert reply == {"objects": []}
    elif name == "batch-step-functions":
        assert [result["status"] for result in reply["results"]] == ["ok", "ok", "error"]
    elif kind == "batch":  # GPT2_RESULTS is not set
        assert reply["errorType"] == "ResultsUnavailable"
    elif name == "direct-populate":  # the demo has no URI to download
        assert reply["error"]["param"] == "GPT2_MODEL_URI"
    elif kind == "bad" and "statusCode" not in reply:
        assert reply["error"]["type"]
    elif "statusCode" in reply:
        assert (reply["statusCode"] == 200) == (kind != "bad")
        assert json.loads(reply["body"])
    else:
        assert isinstance(reply, list) or reply["timings_ms"]["total"] > 0


def emulator_path(machine: str = MACHINE) -> Path | None:
    """The emulator for this machine or for `machine`, if it is installed."""
    found = ROOT.glob(f".venv-dev/lib/python*/site-packages/samcli/local/rapid/*rie-{machine}")
    return next(found, None) if machine else None


class Emulator:
    """A function behind the emulator's invocations path."""

    def __init__(self, port: int, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._url = f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"

    def invoke(self, event: Any) -> Any:
        """The reply, or the error object if the function raised or failed to start (502)."""
        request = Request(self._url, json.dumps(event).encode())
        try:
            with urlopen(request, timeout=60) as reply:
                return json.load(reply)
        except HTTPError as error:
            with error:
                return json.load(error)

    def kill(self) -> None:
        """Kill the emulator, then the function, which has its own process group in this session."""
        self._process.kill()
        self._process.wait(20)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                os.kill(pid, 9)
                select([handle], [], [], 20)
                os.close(handle)

    def processes(self) -> list[int]:
        """The process ids of the emulator's session: the emulator and the function."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(ProcessLookupError):
                if os.getsid(int(path.name)) == self._process.pid:
                    found.append(int(path.name))
        return found


@contextmanager
def emulator(
    path: Path, log: Path, environ: Mapping[str, str], command: Sequence[str] = OURS
) -> Iterator[Emulator]:
    """Run the function with a runtime under the emulator; `log` receives their output."""
    front, back = free_ports(2)
    path.chmod(0o755)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                path,
                "--runtime-interface-emulator-address",
                f"127.0.0.1:{front}",
                "--runtime-api-address",
                f"127.0.0.1:{back}",
                sys.executable,
                *command,
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769", **environ},
            start_new_session=True,
        )
    try:
        wait_for(front, process)
        yield Emulator(front, process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 15)
        process.wait(20)
