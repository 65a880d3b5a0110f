"""Tokens per second of `python -m handler serve` by number of concurrent clients.

    make bench      or      python bench/serve.py [--runs 5] [--precision f32,int8]

Random weights of the 124M shape, packed. Every client sends requests in sequence over HTTP: prompts
of 5 to 8 tokens, 20 new tokens each. A round has the same number of requests for every number of
clients; a ratio is the median of the ratios within a round. Every text is compared with that of a
single client: NumPy may sum in a different order, and select another token if the two highest
logits are almost equal. Writes bench/results/serve.json.
"""

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.implementations import packed_model
from bench.measure import MODELS, ROOT, environment, save_results
from bench.random_model import make

CLIENTS = (1, 8, 16)
REQUESTS = 32
NEW_TOKENS = 20
PROMPTS = [f"My name is John {i}" + " and so" * (i % 4) for i in range(REQUESTS)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--precision", type=lambda s: s.split(","), default=["f32", "int8"])
    args = parser.parse_args()
    published = make(MODELS / "gpt2-published").absolute()
    report = {}
    for precision in args.precision:
        with server(packed_model(published, precision)) as port:
            alone = send_all(port, 1)[1]  # also warms up
            rounds = []
            same = dict.fromkeys(CLIENTS, REQUESTS)
            for _ in range(args.runs):
                speeds = {}
                for clients in CLIENTS:
                    took, texts = send_all(port, clients)
                    speeds[clients] = REQUESTS * NEW_TOKENS / took
                    equal = sum(a == b for a, b in zip(texts, alone, strict=True))
                    same[clients] = min(same[clients], equal)
                rounds.append(speeds)
        report[precision] = {str(n): summary(rounds, n, same[n]) for n in CLIENTS}
        for n in CLIENTS:
            print(f"{precision:<5} {n:>2} clients", report[precision][str(n)], flush=True)
    save_results("serve", report)


def summary(rounds: list[dict[int, float]], clients: int, same_texts: int) -> dict[str, Any]:
    """Tokens per second, and their ratio to those of one client."""
    speeds = [speeds[clients] for speeds in rounds]
    ratios = [speeds[clients] / speeds[1] for speeds in rounds]
    return {
        "tokens_per_s": round(statistics.median(speeds), 1),
        "min": round(min(speeds), 1),
        "max": round(max(speeds), 1),
        "times_one_client": round(statistics.median(ratios), 2),
        "same_texts": f"{same_texts} of {REQUESTS}",
    }


@contextmanager
def server(model: Path) -> Iterator[int]:
    """Run a server on loopback; yields its port."""
    command = [sys.executable, "-m", "handler", "serve", "--port", "0", "--model", str(model)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment() | {"GPT2_PROMPT_LOOKUP": "off"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr
        found = re.search(r"http://[\d.]+:(\d+)", process.stderr.readline())
        assert found
        with ThreadPoolExecutor(1) as reader:
            reader.submit(process.stderr.read)  # so that the pipe never fills
            yield int(found[1])
            process.terminate()
    finally:
        process.terminate()
        process.wait()


def send_all(port: int, clients: int) -> tuple[float, list[str]]:
    """Total seconds of all requests, and their texts."""
    began = perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        texts = list(threads.map(lambda prompt: send(port, prompt), PROMPTS))
    return perf_counter() - began, texts


def send(port: int, prompt: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = json.dumps({"prompt": prompt, "max_new_tokens": NEW_TOKENS})
    connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    answer = json.loads(reply.read())
    connection.close()
    assert reply.status == 200, answer
    text: str = answer["generated_text"]
    return text


if __name__ == "__main__":
    main()
