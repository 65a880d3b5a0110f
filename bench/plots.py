"""Plots bench/results to docs/cold_start.svg, start_up.svg and warm.svg.

The background is transparent, and text is light if the reader prefers a dark color scheme.

make bench      or      python bench/plots.py
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.implementations import F32, INT8
from bench.measure import RESULTS, ROOT

mpl.use("svg")
mpl.rcParams |= {
    "svg.fonttype": "none",  # keep text as text
    "svg.hashsalt": "gpt2",  # reproducible output
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}

from matplotlib import pyplot as plt

HIGHLIGHT, PLAIN, INK = "#c2410c", "#94a3b8", "#475569"
INK_ON_DARK = "#cbd5e1"
mpl.rcParams |= dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
)
PARTS = {
    "imports": ("interpreter and imports", "#94a3b8"),
    "model": ("model", "#0f766e"),
    "tokenizer": ("tokenizer", "#eab308"),
    "tokens": ("4 tokens in, 10 out", "#c2410c"),
}
STATES = {
    "warm": "page cache warm",
    "evicted": "model not in the page cache",
    "volume": "volume of 300 MB/s, 1 ms",
}
SHOWN = (INT8, F32, "llama.cpp Q8_0", "llama.cpp f32", "CTranslate2 int8", "CTranslate2 f32",
         "ONNX Runtime f32", "transformers", "import numpy")  # fmt: skip
WARM = (INT8, "ours bf16", F32, "llama.cpp Q8_0", "llama.cpp bf16", "llama.cpp f32",
        "CTranslate2 int8", "CTranslate2 f32", "transformers")  # fmt: skip
ONCE_WARM = {
    "a token, ms": ("token", "token=30"),
    "a prompt of 64 tokens, ms": ("prompts", "prompt=64"),
    "a prompt of 512 tokens, ms": ("prompts", "prompt=512"),
    "32 prompts together, tokens/s": ("together", "together=32"),
}


def main() -> None:
    cold = _results("cold_start")
    docs = ROOT / "docs"
    bars(
        {
            title: _medians(cold[state], SHOWN, 1000)
            for state, title in STATES.items()
            if state in cold
        },
        "From process start to the 10th token: GPT-2 124M, two cores, seconds",
        "{:.2f} s",
        docs / "cold_start.svg",
    )
    waterfall({name: row["laps_ms"] for name, row in cold["warm"].items()}, docs / "start_up.svg")
    panels = {  # three digits, without exponents
        title: {n: float(f"{v:.3g}") for n, v in _medians(_results(name)[word], WARM).items()}
        for title, (name, word) in ONCE_WARM.items()
        if word in _results(name)
    }
    if panels:
        title = "Once everything is warm: GPT-2 124M, two cores"
        bars(panels, title, "{:g}", docs / "warm.svg", columns=2)


def _results(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _medians(rows: dict[str, Any], names: tuple[str, ...], per: float = 1) -> dict[str, float]:
    """The medians of the names that have results."""
    return {
        name: next(v for key, v in rows[name].items() if key.startswith("median")) / per
        for name in names
        if name in rows
    }


def bars(
    panels: dict[str, dict[str, float]], title: str, form: str, path: Path, columns: int = 1
) -> None:
    """Draw panels of bars in `columns` columns, with this project highlighted."""
    rows = [list(panels.items())[i : i + columns] for i in range(0, len(panels), columns)]
    height = [max(len(values) for _, values in row) for row in rows]
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(8, 0.3 * sum(height) + 0.8 * len(rows)),
        gridspec_kw={"height_ratios": height}, squeeze=False,
    )  # fmt: skip
    for axis, (name, values) in zip(axes.flat, panels.items(), strict=True):
        names = list(reversed(values))
        colors = [HIGHLIGHT if n.startswith("ours") else PLAIN for n in names]
        axis.barh(names, [values[n] for n in names], color=colors, height=0.72)
        for row, n in enumerate(names):
            _label(axis, values[n], row, form.format(values[n]))
        axis.set_title(name, loc="left", fontsize=11)
        axis.tick_params(left=False, bottom=False, labelbottom=False)
        axis.spines.bottom.set_visible(False)
        axis.set_xlim(0, (1 + 0.12 * columns) * max(values.values()))
    figure.suptitle(title, x=0.02, ha="left")
    _save(figure, path)


def waterfall(laps: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the phases of each implementation from process start to its text."""
    shown = (INT8, F32, "llama.cpp Q8_0", "llama.cpp f32", "CTranslate2 int8", "CTranslate2 f32")
    names = [name for name in reversed(shown) if name in laps]
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(names) + 1.5))
    for row, name in enumerate(names):
        begin = 0.0
        for part, (_, color) in PARTS.items():
            end = laps[name].get(part, begin)
            axis.barh(row, end - begin, left=begin, color=color, height=0.62)
            begin = end
        _label(axis, begin, row, f"{begin:.0f} ms")
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(left=False)
    axis.set_xlim(0, 1.1 * max(laps[name]["tokens"] for name in names))
    axis.set_xlabel("milliseconds since the process began, page cache warm", color=INK)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for _, color in PARTS.values()]
    labels = [label for label, _ in PARTS.values()]
    figure.legend(handles, labels, ncols=4, loc="upper left", frameon=False, fontsize=10)
    figure.subplots_adjust(top=0.86)
    _save(figure, path, top=0.9)


def _label(axis: Any, x: float, row: int, text: str) -> None:
    """Write a value at the end of its bar."""
    axis.annotate(text, (x, row), xytext=(5, 0), textcoords="offset points", va="center", color=INK)


def _save(figure: Any, path: Path, top: float = 1.0) -> None:
    figure.tight_layout(rect=(0, 0, 1, top))
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    style = (
        f"svg {{color: {INK}}} @media (prefers-color-scheme: dark) {{svg {{color: {INK_ON_DARK}}}}}"
    )
    text = drawn.getvalue().replace(INK, "currentColor")
    path.write_text(text.replace("<defs>", f"<style>{style}</style>\n <defs>", 1))
    print(f"docs/{path.name}")


if __name__ == "__main__":
    main()
