"""One decoded token: against the bare products it cannot do without, and against the peers'.

    make bench      or      python bench/decode.py [--tokens 40] [--runs 3]

Random weights of the 124M shape. First in one process, float32, packed: a token against a floor
that multiplies a vector with every weight matrix once, by `numpy.matmul`, and does nothing else;
they alternate. Then every peer in a process of its own, in turn: what each of 30 more tokens takes
once everything is warm. Last the machine: bytes per second of a dot product over 2 x 256 MB, all
that a float32 token could hope for. Writes bench/results/decode.json.
"""

import argparse
import statistics
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.cold_start import OURS, contestants
from bench.measure import in_checkout, in_turn, keep
from gpt2core import Engine
from gpt2core.model import KVCache, decode, prefill

MORE_TOKENS = "30"


def main() -> None:
    parser = argparse.ArgumentParser(description="Decode against bare products and peers.")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    everybody = contestants()
    report = against_products(Engine.open(everybody[OURS].folder), args.tokens)
    print(
        f"a token {report['token_ms']} ms, bare products {report['bare_products_ms']} ms,"
        f" ratio {report['ratio']} (quartiles {report['ratio_quartiles']})"
    )
    commands = {name: [*c.command(), MORE_TOKENS] for name, c in everybody.items()}
    del commands["plain NumPy, no cache"]  # each of its tokens is another whole pass
    done = in_turn(commands, args.runs, in_checkout())
    report["peers_token_ms"] = {}
    for name, runs in done.items():
        values = [run.report["token_ms"] for run in runs]
        report["peers_token_ms"][name] = round(statistics.median(values), 2)
        print(
            f"{name:<28}{statistics.median(values):>7.1f} ms  ({min(values):.1f}-{max(values):.1f})"
        )
    report["memory_gb_per_s"] = round(memory_bytes_per_s() / 1e9, 1)
    print(f"memory is read at {report['memory_gb_per_s']} GB/s")
    keep("decode", report)


def against_products(engine: Engine, tokens: int) -> dict[str, Any]:
    """Medians of a token and of its bare products, and the median of the ratios of neighbours."""
    weights, config = engine._weights, engine.config
    matrices = [
        affine.weight
        for i in range(config.n_layer)
        for affine in (*weights.block(i).attn, *weights.block(i).mlp)
    ]
    vectors = {n: np.ones((1, n), np.float32) for n in (config.n_embd, config.n_inner)}
    cache = KVCache(config, 8 + 2 * tokens)
    token = int(prefill(weights, config, [1, 2, 3, 4], cache).argmax())
    decoded, floor, ratios = [], [], []
    for i in range(2 * tokens):
        began = perf_counter()
        token = int(decode(weights, config, token, cache).argmax())
        middle = perf_counter()
        for matrix in matrices:
            np.matmul(vectors[len(matrix)], matrix)
        np.matmul(vectors[config.n_embd], weights.lm_head.T)
        ended = perf_counter()
        if i >= tokens:  # the first half warms up
            decoded.append(1000 * (middle - began))
            floor.append(1000 * (ended - middle))
            ratios.append((middle - began) / (ended - middle))
    return {
        "token_ms": round(statistics.median(decoded), 2),
        "bare_products_ms": round(statistics.median(floor), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)],
    }


def memory_bytes_per_s(repeats: int = 15) -> float:
    """The median over some dot products, which OpenBLAS shares out among all threads."""
    a, b = np.ones(1 << 26, np.float32), np.ones(1 << 26, np.float32)
    took = []
    for _ in range(repeats):
        began = perf_counter()
        np.dot(a, b)
        took.append(perf_counter() - began)
    return (a.nbytes + b.nbytes) / statistics.median(took)


if __name__ == "__main__":
    main()
