"""Events through the Lambda runtime: eight at once against one at a time; a cold streamed reply.

    make bench      or      python bench/events.py [together] [first] [--runs 5]

Random weights of the 124M shape in int8, native kernels, the tests' Runtime API server.

    together   tokens per second of 8 concurrent events (AWS_LAMBDA_MAX_CONCURRENCY=8) and of the
               same events in sequence, in one process per round; the texts must be the same
    first      time from process start to the first text of a streamed reply of 50 tokens, and to
               its last byte, with 2 threads and a warm page cache

Writes bench/results/events.json.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.implementations import packed_model
from bench.measure import MODELS, compare, save_results
from bench.random_model import make
from tests.support.events import http_event
from tests.support.runtime_api_server import OURS, Handler, RuntimeApiServer, runtime

HANDLER = "handler.app.lambda_handler"
AT_ONCE = 8
PROMPTS = [f"My name is John {i}" + " and so" * (i % 4) for i in range(AT_ONCE)]
STREAMED_TOKENS = 50


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", nargs="*", default=["together", "first"])
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    model = str(packed_model(make(MODELS / "gpt2-published").absolute(), "int8"))
    report: dict[str, Any] = {}
    if "together" in args.work:
        report["together"] = {
            f"{tokens} tokens, {threads} thread{'s' * (threads > 1)}": together(
                model, tokens, threads, args.runs
            )
            for threads in (1, 2)
            for tokens in (20, 100)
        }
    if "first" in args.work:
        report["first"] = first(model, args.runs)
    save_results("events", report)


def together(model: str, new_tokens: int, threads: int, runs: int) -> dict[str, Any]:
    """Tokens per second of concurrent and sequential events, and their ratio."""
    bodies = [json.dumps({"prompt": p, "max_new_tokens": new_tokens}).encode() for p in PROMPTS]
    environ = {
        "GPT2_MODEL_DIR": model,
        "GPT2_KERNELS": "native",
        "GPT2_THREADS": str(threads),
        "AWS_LAMBDA_MAX_CONCURRENCY": str(AT_ONCE),
    }
    values: dict[str, list[float]] = {"one at a time": [], "eight at once": []}
    for _ in range(runs):  # a new process for each: its log must fit into the pipe
        with RuntimeApiServer() as server:
            with runtime(server, OURS, HANDLER, **environ):
                alone = [text_of(server.invoke(body).body) for body in bodies]  # warms up
                began = perf_counter()
                for body in bodies:
                    server.invoke(body)
                values["one at a time"].append(AT_ONCE * new_tokens / (perf_counter() - began))
                began = perf_counter()
                for body in bodies:
                    server.send(body)
                answers = [server.replies.get(timeout=60) for _ in bodies]
                values["eight at once"].append(AT_ONCE * new_tokens / (perf_counter() - began))
            for _ in range(AT_ONCE - 1):  # ends the waiting polls
                server.events.put(None)
        texts = {a.path.split("/")[4]: text_of(a.body) for a in answers}
        assert [texts[f"request-{2 * AT_ONCE + i}"] for i in range(1, AT_ONCE + 1)] == alone
    print(f"\n{new_tokens} new tokens, {threads} thread{'s' * (threads > 1)}, same texts")
    report = compare(values, "one at a time", unit="tokens_per_s", scale=1)
    report["same_texts"] = f"{AT_ONCE} of {AT_ONCE} in {runs} rounds"
    return report


def text_of(body: bytes) -> str:
    """The text of a reply."""
    text: str = json.loads(body)["generated_text"]
    return text


class _Timed(Handler):
    """Records when the first text of a streamed reply arrives."""

    def do_POST(self) -> None:  # noqa: N802
        first_text: float | None = None
        while size := int(self.rfile.readline(), 16):
            chunk = self.rfile.read(size)
            if first_text is None and b'{"token"' in chunk:
                first_text = perf_counter()
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        self.server.replies.put((first_text, perf_counter()))  # type: ignore[arg-type]
        self.reply(202, b'{"status":"OK"}', {})


def first(model: str, runs: int) -> dict[str, Any]:
    """Time from process start to the first text and to the last byte."""
    event = http_event(
        source="url",
        path="/generate",
        prompt="My name is John",
        max_new_tokens=STREAMED_TOKENS,
        stream=True,
    )
    body = json.dumps(event).encode()
    values: dict[str, list[float]] = {"last byte": [], "first text": []}
    for run in range(runs + 1):
        with RuntimeApiServer() as server:
            server.RequestHandlerClass = _Timed
            server.send(body)
            began = perf_counter()
            with runtime(
                server, OURS, HANDLER, GPT2_MODEL_DIR=model, GPT2_STREAM="url", GPT2_THREADS="2"
            ):
                first_text, end = server.replies.get(timeout=60)  # type: ignore[misc]
            assert first_text is not None
            if run:  # the first writes bytecode
                values["first text"].append(first_text - began)
                values["last byte"].append(end - began)
    print(f"\ncold, a stream of {STREAMED_TOKENS} tokens")
    report = compare(values, "last byte")
    report["ahead_ms"] = round(
        1000 * median(b - a for a, b in zip(values["first text"], values["last byte"], strict=True))
    )
    return report


if __name__ == "__main__":
    main()
