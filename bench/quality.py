"""The accuracy of bf16 and int8: perplexity, next tokens and logits.

    .venv-reference/bin/python -m bench.quality [--tokens N]

Perplexity and next tokens are those of the demo model on its held-out tales, in windows of its
context; logits are those of random weights of the 124M shape. Writes bench/results/quality.json.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from bench.measure import MODELS, ROOT, save_results
from bench.random_model import TEST_DATA, make
from gpt2core import Engine
from gpt2core.pack import pack
from scripts.train_demo import read_corpus

PRECISIONS = ("f32", "bf16", "int8")


def held_out(engine: Engine, count: int) -> list[list[int]]:
    """Windows of at most the model's context, each from one tale, with `count` tokens or more."""
    windows: list[list[int]] = []
    for tale in read_corpus(TEST_DATA / "corpus").held_out:
        ids = engine.tokenizer.encode(tale)
        size = engine.config.n_positions
        windows += [ids[i : i + size] for i in range(0, len(ids), size) if len(ids) - i > 1]
    total = 0
    for n, window in enumerate(windows):
        total += len(window) - 1
        if total >= count:
            return windows[: n + 1]
    return windows


def scored(engine: Engine, windows: list[list[int]]) -> tuple[float, np.ndarray]:
    """Perplexity, and the most likely next token at every position."""
    loss, best = 0.0, []
    for ids in windows:
        logits = engine.logits(ids[:-1]).astype(np.float64)
        best.append(logits.argmax(axis=1))
        logits -= logits.max(axis=1, keepdims=True)
        normal = np.log(np.exp(logits).sum(axis=1))
        loss += (normal - logits[np.arange(len(logits)), ids[1:]]).sum()
    tokens = np.concatenate(best)
    return float(np.exp(loss / len(tokens))), tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokens", type=int, default=200_000, help="maximum number of tokens (default 200,000)"
    )
    args = parser.parse_args()
    raw = Engine.open(ROOT / "models" / "demo")
    windows = held_out(raw, args.tokens)
    exact, expected = scored(raw, windows)
    ids = [(7919 * i) % 50257 for i in range(64)]
    published = make(MODELS / "gpt2-published")
    truth = Engine.open(published).logits(ids)
    report = {"tokens": len(expected), "raw_perplexity": round(exact, 4)}
    print(f"{len(expected)} tokens, perplexity {exact:.4f} raw")
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            pack(ROOT / "models" / "demo", Path(folder) / "demo", precision)
            perplexity, tokens = scored(Engine.open(Path(folder) / "demo"), windows)
            pack(published, Path(folder) / "random", precision)
            error = Engine.open(Path(folder) / "random").logits(ids) - truth
        row = report[precision] = {
            "perplexity": round(perplexity, 4),
            "more_percent": round(100 * (perplexity / exact - 1), 3),
            "same_next_token_percent": round(100 * float((tokens == expected).mean()), 2),
            "logit_error_rms_of_spread": round(float(error.std() / truth.std()), 5),
        }
        print(precision, row, flush=True)
    save_results("quality", report)


if __name__ == "__main__":
    main()
