"""Process start to the 10th token's text: ours against its peers, whole processes.

    make bench      or      python bench/cold_start.py [--runs 7]

Random weights of the 124M shape (see `random_model.py`), 4 prompt tokens, page cache warm,
tokenizer included. Runs alternate, so that a machine that slows down slows all; a ratio is the
median of the ratios of runs side by side. Writes bench/results/cold_start.json.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measure import MODELS, ROOT, compared, in_turn, keep, seconds
from bench.random_model import make
from gpt2core.pack import pack

PROMPT = "My name is John"
NEW_TOKENS = "10"


def main() -> None:
    parser = argparse.ArgumentParser(description="Cold start against transformers.")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    published = str(make(MODELS / "gpt2-published"))
    aligned = str(make(MODELS / "gpt2-aligned", aligned=True))
    packed = MODELS / "gpt2-packed"
    if not (packed / "gpt2.manifest.json").exists():
        pack(published, packed)
    ours = [sys.executable, "-m", "gpt2core", "generate", PROMPT, "-n", NEW_TOKENS, "--model"]
    theirs = [sys.executable, str(ROOT / "bench" / "with_transformers.py")]
    ctranslate2 = [sys.executable, str(ROOT / "bench" / "with_ctranslate2.py")]
    tokenizer = str(Path(published) / "tokenizer.json")
    converted = {kind: convert(published, kind) for kind in ("float32", "int8")}
    commands = {
        "transformers": [*theirs, published, PROMPT, NEW_TOKENS],
        "CTranslate2 f32": [*ctranslate2, converted["float32"], tokenizer, PROMPT, NEW_TOKENS],
        "CTranslate2 int8": [*ctranslate2, converted["int8"], tokenizer, PROMPT, NEW_TOKENS],
        "ours, packed": [*ours, str(packed)],
        "ours, aligned file": [*ours, aligned],
        "ours, published file": [*ours, published],
        "import numpy": [sys.executable, "-c", "import numpy"],
        "bare interpreter": [sys.executable, "-c", "pass"],
    }
    keep("cold_start", compared(in_turn(commands, args.runs), "ours, packed"))


def convert(model: str, quantization: str) -> str:
    """The model in CTranslate2's own format, made once."""
    target = MODELS / f"gpt2-ctranslate2-{quantization}"
    if not target.exists():
        code = (
            "import sys, ctranslate2\n"
            "model, target, quantization = sys.argv[1:]\n"
            "converter = ctranslate2.converters.TransformersConverter(model)\n"
            "converter.convert(target, quantization=quantization)"
        )
        seconds([sys.executable, "-c", code, model, str(target), quantization])
    return str(target)


if __name__ == "__main__":
    main()
