"""The kernels against the machine's memory bandwidth and peak of multiply-adds, in one process.

    make bench      or      python bench/kernels.py [--rounds 60]

Random weights of the 124M shape in every precision. Measurements alternate, so that a change of the
machine's speed affects all; a ratio is the median of the ratios of adjacent measurements:

    token      decoding a token with 64 positions in the cache, through the engine
    products   its matrix products alone
    read       reading the packed file from memory with the same threads (floor.c)
    rows=N     the matrix products of the blocks for N rows; `peak` is their rate as a fraction of
               the multiply-adds per second of floor.c
    attention  the additional time of a token with 960 positions instead of 64, against reading the
               additional keys and values

Writes bench/results/kernels.json.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measure import REMOVED_VARIABLES, ROOT, save_results

THREADS = len(os.sched_getaffinity(0))
ROWS = (1, 4, 16, 512)
DISTANCE = 896
MULTIPLY_ADDS = 2_000_000
FLOPS = 2 * 16 * 12 * MULTIPLY_ADDS * THREADS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    for name in REMOVED_VARIABLES:  # before NumPy is imported
        os.environ.pop(name, None)
    report: dict[str, Any] = {"threads": THREADS}
    with tempfile.TemporaryDirectory() as folder:
        floor = _compile_floor(Path(folder))
        from bench.implementations import implementations

        for name, ours in implementations("ours f32", "ours bf16", "ours int8").items():
            report[name] = measure(ours.folder, floor, args.rounds)
            print(name, report[name], flush=True)
    save_results("kernels", report)


def _compile_floor(folder: Path) -> ctypes.CDLL:
    library = folder / "floor.so"
    command = ["cc", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread"]
    wide = ["-mprefer-vector-width=512"] if os.uname().machine == "x86_64" else []
    source = str(ROOT / "bench" / "floor.c")
    subprocess.run([*command, *wide, "-o", str(library), source], check=True)
    return ctypes.CDLL(str(library))


def measure(folder: Path, floor: ctypes.CDLL, rounds: int) -> dict[str, Any]:
    """All measurements of one precision."""
    import numpy as np

    from gpt2core import Engine

    engine = Engine.open(folder, prompt_lookup=False)
    engine.generate_ids([1], 1)
    weights, config = engine._forward.weights, engine.config
    blocks = [weights.block(i) for i in range(config.n_layer)]
    matrices = [m for b in blocks for m in (b.attn.c_attn, b.attn.c_proj, b.mlp.c_fc, b.mlp.c_proj)]
    linear = _linear(engine._forward.is_native)
    file = np.memmap(folder / "packed.safetensors", np.uint8, "r")
    cache = np.ones((2, config.n_layer, DISTANCE, config.n_embd), np.float32)

    def read(array: "np.ndarray[Any, Any]") -> None:
        floor.read_bytes(
            ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), ctypes.c_int(THREADS)
        )

    def products(rows: int, *more: Any) -> Callable[[], object]:
        x = {n: np.ones((rows, n), np.float32) for n in (config.n_embd, config.n_inner)}
        return lambda: [linear(x[m.tensor.shape[0]], m) for m in (*matrices, *more)]

    def multiply_add() -> None:
        floor.multiply_adds(ctypes.c_long(MULTIPLY_ADDS), ctypes.c_int(THREADS))

    head = weights.lm_head
    near = {
        "token": _decoder(engine, 64),
        "products": products(1, head),
        "read": lambda: read(file),
        **{f"rows={n}": products(n) for n in ROWS[:-1]},
        "multiply_adds": multiply_add,
    }
    took = _alternate(near, rounds)
    large = _alternate({f"rows={ROWS[-1]}": products(ROWS[-1]), "multiply_adds": multiply_add}, 10)
    far = {
        "token": _decoder(engine, 64),
        "far": _decoder(engine, 64 + DISTANCE),
        "cache": lambda: read(cache),
    }
    took_far = _alternate(far, 30)
    flops = 2 * sum(m.tensor.data.size for m in matrices)
    peak = {n: _share(took[f"rows={n}"], took["multiply_adds"], n * flops) for n in ROWS[:-1]}
    peak[ROWS[-1]] = _share(*large.values(), ROWS[-1] * flops)
    longer = [f - t for f, t in zip(took_far["far"], took_far["token"], strict=True)]
    return {
        "ms": {n: round(1000 * median(v), 2) for n, v in (took | large).items()},
        "read_gb_per_s": round(file.nbytes / median(took["read"]) / 1e9, 1),
        "peak_gflops": round(FLOPS / median(took["multiply_adds"]) / 1e9),
        "token_of_read": _ratio(took["token"], took["read"]),
        "token_of_products": _ratio(took["token"], took["products"]),
        "rows_of_one": {n: _ratio(took[f"rows={n}"], took["rows=1"]) for n in ROWS[1:-1]},
        "peak": peak,
        "attention_of_read": _ratio(longer, took_far["cache"]),
    }


def _decoder(engine: Any, positions: int) -> Callable[[], object]:
    """A function that decodes one token per call, the first after `positions` tokens."""
    from gpt2core.generation import Prompt

    scheduler = engine.scheduler()
    scheduler.add(Prompt(0, [1] * positions, engine.config.n_positions - positions))
    while not any(tokens for _, tokens, _ in scheduler.step()):
        pass
    return scheduler.step  # type: ignore[no-any-return]


def _linear(native: bool) -> Any:
    """The matrix product of the kernels in use."""
    if native:
        from gpt2core.kernels.native import linear
    else:
        from gpt2core.kernels.reference import linear
    return linear


def _alternate(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round."""
    took: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 2):  # two rounds warm up
        for name, work in works.items():
            began = perf_counter()
            work()
            if number > 1:
                took[name].append(perf_counter() - began)
    return took


def _ratio(above: list[float], below: list[float]) -> float:
    return round(median(a / b for a, b in zip(above, below, strict=True)), 3)


def _share(products: list[float], multiply_adds: list[float], flops: int) -> float:
    """The median rate of `products` as a fraction of the machine's peak."""
    rates = [(flops / p) / (FLOPS / m) for p, m in zip(products, multiply_adds, strict=True)]
    return round(median(rates), 3)


if __name__ == "__main__":
    main()
