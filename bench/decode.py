"""One decoded token against the bare matrix-vector products that it cannot do without.

    make bench      or      python bench/decode.py [--tokens 40]

Random weights of the 124M shape, float32, NumPy. The floor multiplies a vector with every weight
matrix of the network once, by `numpy.matmul`, and does nothing else. Token and floor alternate.
Writes bench/results/decode.json.
"""

import argparse
import statistics
import sys
from pathlib import Path
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measure import MODELS, keep
from bench.random_model import make
from gpt2core import Engine
from gpt2core.model import KVCache, decode, prefill


def main() -> None:
    parser = argparse.ArgumentParser(description="Decode against bare products.")
    parser.add_argument("--tokens", type=int, default=40)
    args = parser.parse_args()
    engine = Engine.open(make(MODELS / "gpt2-aligned", aligned=True))
    weights, config = engine._weights, engine.config
    matrices = [
        affine.weight
        for i in range(config.n_layer)
        for affine in (*weights.block(i).attn, *weights.block(i).mlp)
    ]
    vectors = {n: np.ones((1, n), np.float32) for n in (config.n_embd, config.n_inner)}
    cache = KVCache(config, 8 + 2 * args.tokens)
    token = int(prefill(weights, config, [1, 2, 3, 4], cache).argmax())
    decoded, floor, ratios = [], [], []
    for i in range(2 * args.tokens):
        began = perf_counter()
        token = int(decode(weights, config, token, cache).argmax())
        middle = perf_counter()
        for matrix in matrices:
            np.matmul(vectors[len(matrix)], matrix)
        np.matmul(vectors[config.n_embd], weights.lm_head.T)
        ended = perf_counter()
        if i >= args.tokens:  # the first half warms up
            decoded.append(1000 * (middle - began))
            floor.append(1000 * (ended - middle))
            ratios.append((middle - began) / (ended - middle))
    report = {
        "token_ms": round(statistics.median(decoded), 2),
        "bare_products_ms": round(statistics.median(floor), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)],
    }
    print(
        f"a token {report['token_ms']} ms, bare products {report['bare_products_ms']} ms,"
        f" ratio {report['ratio']} (quartiles {report['ratio_quartiles']})"
    )
    keep("decode", report)


if __name__ == "__main__":
    main()
