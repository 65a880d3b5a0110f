"""Downloading, verifying and opening a 548 MB model, against `aws s3 cp` of its weights.

    make bench      or      python bench/download.py [--runs 7]

Both processes alternate and download to an empty directory, from a loopback server that replies to
HEAD and ranged GET with `sendfile` (`s3_server.py`). `aws s3 cp` writes one file and verifies
nothing; ours also downloads configuration and tokenizer, computes SHA-256 digests, syncs to disk,
opens the model and publishes it. Writes bench/results/download.json.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measure import MODELS, ROOT, compare, run_alternating, save_results, seconds_of
from bench.random_model import make

AWS = "aws s3 cp"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    model = make(MODELS / "gpt2-aligned", aligned=True)
    target = MODELS / "download"
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "bench" / "s3_server.py"), str(model)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    environ = {
        "PATH": os.environ["PATH"],
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{int(server.stdout.readline())}",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    aws = str(Path(sys.executable).parent / "aws")
    commands = {
        AWS: [aws, "s3", "cp", "s3://bench/model.safetensors", str(target / "model.safetensors")],
        "ours, fetch": [sys.executable, "-m", "handler", "fetch", "s3://bench", str(target)],
    }

    def empty(_name: str) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        os.sync()  # so that the next run does not wait for these writes

    try:
        done = run_alternating(commands, args.runs, environ, empty, whole=True)
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(target, ignore_errors=True)
    save_results("download", compare(seconds_of(done), AWS))


if __name__ == "__main__":
    main()
