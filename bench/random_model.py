"""Writes random weights in the shapes and layout of the published GPT-2 models.

    python -m bench.random_model DIR [--size 124M|355M|774M|1.5B]

Speed does not depend on the values of weights. As in the published gpt2, the tensors are F32,
causal masks are included (548 MB), and the data starts at an odd offset, so that no tensor is
aligned. `--aligned` pads the header to a multiple of 64 bytes, as newer writers do. The published
tokenizer is copied if GPT2_TEST_DATA has it.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np

from gpt2core.config import GPT2Config
from gpt2core.files.checkpoint import expected_shapes

PUBLISHED_DATA_BEGINS = 14_291
ROOT = Path(__file__).parent.parent
TEST_DATA = Path(os.environ.get("GPT2_TEST_DATA", ROOT.parent / "shared" / "data"))
CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_ctx": 1024,
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
SIZES = {
    "124M": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "355M": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "774M": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "1.5B": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
}


def make(folder: Path, size: str = "124M", *, aligned: bool = False) -> Path:
    """Write the model directory if it does not exist; returns it."""
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    raw_config = CONFIG | SIZES[size]
    (folder / "config.json").write_text(json.dumps(raw_config, indent=2))
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        if (TEST_DATA / "gpt2-tokenizer" / name).exists():
            shutil.copy(TEST_DATA / "gpt2-tokenizer" / name, folder)
    config = GPT2Config.from_dict(raw_config)
    n = config.n_positions
    shapes = {f"h.{i}.attn.bias": (1, 1, n, n) for i in range(config.n_layer)}
    shapes |= expected_shapes(config)
    shapes = dict(sorted(shapes.items()))  # the published file's order
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    begins = -(-(len(raw) + 8) // 64) * 64 + (0 if aligned else PUBLISHED_DATA_BEGINS % 64)
    length = begins - 8
    draw = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(length.to_bytes(8, "little") + raw.ljust(length))
        for name, shape in shapes.items():
            if name.endswith(".attn.bias"):
                array = np.tril(np.ones(shape, np.float32))
            elif "ln_" in name:
                array = np.full(shape, name.endswith("weight"), np.float32)
            else:
                array = 0.02 * draw.standard_normal(shape, np.float32)
            file.write(array.astype(np.float32).tobytes())
    (folder / "done").touch()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--aligned", action="store_true")
    args = parser.parse_args()
    folder = make(args.folder, args.size, aligned=args.aligned)
    print(f"{folder}: {(folder / 'model.safetensors').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
