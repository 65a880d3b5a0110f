"""Time from `docker run` to the first reply, for this image and a peer's; and the memory needed.

    make image-bench      or, with a Docker daemon,      python bench/container.py [--runs 7]

Both images have the same base and are built the same way (`Dockerfile`,
`bench/transformers.Dockerfile`). Each runs under AWS's emulator and receives requests until it
replies: 4 prompt tokens, 10 new tokens; with the demo model in the image, and with random weights
of the 124M shape on a read-only volume. `docker run` of `true` is the lower bound. Runs alternate,
each after an untimed run, so that the page cache is warm.

Then our image runs with less and less memory. The model's files are evicted before, so that their
pages are charged to the container. Writes bench/results/container.json.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.implementations import packed_model
from bench.measure import MODELS, ROOT, compare, save_results
from bench.random_model import make
from bench.states import evict
from scripts.image_size import OWN, own_layers, parts
from tests.support.emulator import emulator_path
from tests.support.ports import free_ports

OURS, PEER = "gpt2-lambda-bench", "gpt2-lambda-bench-transformers"
TORCH = "torch==2.13.0"
PATH = "/2015-03-31/functions/function/invocations"
EVENT = json.dumps({"prompt": "My name is John", "max_new_tokens": 10}).encode()
TIMEOUT_S = 120
MEGABYTES = (2048, 1024, 896, 768, 704, 640, 600, 576, 512, 384, 256, 192, 128, 96)


class Start(NamedTuple):
    """A container: its image, options of `docker run`, and the command under the emulator."""

    image: str
    options: tuple[str, ...]
    command: tuple[str, ...]

    def run(self) -> float:
        """Seconds from `docker run` to the reply; without a command, to its end."""
        port, internal = free_ports(2)
        # The host's network: on a bridge, a request before the server listens is lost, and TCP
        # retransmits it after a second.
        options = ["--read-only", "--tmpfs=/tmp", "--network=host", *self.options]
        options += ["-v", f"{emulator_path()}:/rie:ro"]
        emulator = ["--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
        emulator += ["--runtime-api-address", f"127.0.0.1:{internal}"]
        if not self.command:
            command = ["docker", "run", "--rm", *options, "--entrypoint", "true", self.image]
            began = perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            return perf_counter() - began
        command = ["docker", "run", "-d", *options, "--entrypoint", "/rie", self.image]
        command += [*emulator, *self.command]
        began = perf_counter()
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            reply = _post(f"http://127.0.0.1:{port}{PATH}", began)
            took = perf_counter() - began
        finally:
            name = started.communicate()[0].strip()
            subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=True)
        if "generated_text" not in reply:
            raise SystemExit(f"{self.image}: {reply}")
        return took


def _post(url: str, began: float) -> Any:
    """The reply of a function that may still be starting."""
    while True:
        try:
            with urlopen(Request(url, EVENT), timeout=TIMEOUT_S) as answer:
                return json.load(answer)
        except (URLError, OSError):
            if perf_counter() - began > TIMEOUT_S:
                raise
            time.sleep(0.002)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    _build()
    report: dict[str, Any] = {"own_mb": _own_megabytes()}
    published = make(MODELS / "gpt2-published").absolute()
    report["first_reply"] = _first_replies(published, args.runs)
    report["memory"] = {p: _memory(published, p) for p in ("f32", "bf16", "int8")}
    save_results("container", report)


def _build() -> None:
    script = str(ROOT / "scripts" / "build_image.sh")
    subprocess.run([script, OURS], check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        for name in ("bench", "scripts", "requirements", "models/demo"):
            skipped = shutil.ignore_patterns("models", "results", "__pycache__")
            shutil.copytree(ROOT / name, context / name, ignore=skipped)
        (context / "Dockerfile").write_text((ROOT / "bench/transformers.Dockerfile").read_text())
        version = subprocess.run(
            ["docker", "run", "--rm", "--entrypoint", "python3", OURS, "-V"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()[1]
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", TORCH]
        download += ["--only-binary=:all:", f"--python-version={version}", "-d"]
        subprocess.run([*download, str(context / "torch")], check=True)
        build = [str(context / "scripts" / "build_image.sh"), PEER]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)


def _own_megabytes() -> dict[str, float]:
    """Compressed megabytes added to the base, without models."""
    report = {}
    for image, layers in ((OURS, OWN), (PEER, 2)):  # layers that their Dockerfiles add
        found = parts(own_layers(image, layers))
        size = sum(part.compressed for name, part in found.items() if name != "models")
        report[image] = round(size / 1e6, 1)
        print(f"{image}: {report[image]} MB compressed, without base and models")
    return report


def _first_replies(published: Path, runs: int) -> dict[str, Any]:
    ours = ("python3", "-S", "bootstrap.py")
    theirs = ("python3", "-S", "-m", "awslambdaric", "transformers_function.lambda_handler")
    packed = f"-v={packed_model(published, 'f32')}:/mnt/gpt2:ro"
    raw = (f"-v={published}:/mnt/gpt2:ro", "-e=MODEL=/mnt/gpt2")
    starts = {
        "ours, demo": Start(OURS, (), ours),
        "transformers, demo": Start(PEER, (), theirs),
        "ours, 124M": Start(OURS, (packed,), ours),
        "transformers, 124M": Start(PEER, raw, theirs),
        "docker run true": Start(OURS, (), ()),
    }
    times: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(runs):
        for name, start in starts.items():
            start.run()
            times[name].append(start.run())
    report = {}
    for model in ("demo", "124M"):
        names = (f"ours, {model}", f"transformers, {model}", "docker run true")
        report[model] = compare({n: times[n] for n in names}, names[0])
    return report


def _memory(published: Path, precision: str) -> dict[str, Any]:
    """Milliseconds from `docker run` to the reply by megabytes; None if the kernel kills it."""
    folder = packed_model(published, precision)
    report: dict[str, Any] = {}
    print(f"\n{precision}: megabytes, milliseconds")
    for megabytes in MEGABYTES:
        evict(folder)
        limits = [f"--memory={megabytes}m", f"--memory-swap={megabytes}m"]
        command = ["docker", "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp"]
        command += ["-i", *limits, f"-v={folder}:/mnt/gpt2:ro", OURS, "invoke", "/dev/stdin"]
        began = perf_counter()
        done = subprocess.run(command, input=EVENT, capture_output=True, check=False)
        took = round(1000 * (perf_counter() - began))
        report[str(megabytes)] = None if done.returncode else took
        print(f"{megabytes:>6} {took if not done.returncode else 'killed':>8}", flush=True)
        if done.returncode:
            break
    return report


if __name__ == "__main__":
    main()
