"""Pictures of bench/results for the README: docs/cold_start.svg and docs/start_up.svg.

make bench      or      python bench/plots.py
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.cold_start import OURS
from bench.measure import RESULTS, ROOT

mpl.use("svg")
mpl.rcParams |= {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "gpt2",  # the same input, the same file
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}

from matplotlib import pyplot as plt

HIGHLIGHT, PLAIN, FAINT = "#c2410c", "#94a3b8", "#475569"
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
SHOWN = (OURS, "llama.cpp f32", "CTranslate2 f32", "ONNX Runtime f32", "transformers",
         "plain NumPy, no cache")  # fmt: skip


def main() -> None:
    report = json.loads((RESULTS / "cold_start.json").read_text())
    docs = ROOT / "docs"
    docs.mkdir(exist_ok=True)
    bars(report, docs / "cold_start.svg")
    waterfall(report["laps"]["warm"], docs / "start_up.svg")


def bars(report: dict[str, Any], path: Path) -> None:
    """Seconds from process start to text of the float32 peers, a panel for each state."""
    states = [state for state in STATES if state in report]
    height = [sum(name in report[state] for name in SHOWN) for state in states]
    figure, axes = plt.subplots(
        len(states), 1, figsize=(8, 0.36 * sum(height) + 0.95 * len(states)),
        gridspec_kw={"height_ratios": height}, squeeze=False,
    )  # fmt: skip
    for axis, state in zip(axes[:, 0], states, strict=True):
        times = {n: report[state][n]["median_ms"] / 1000 for n in SHOWN if n in report[state]}
        names = sorted(times, key=lambda name: -times[name])
        colors = [HIGHLIGHT if name == OURS else PLAIN for name in names]
        axis.barh(names, [times[name] for name in names], color=colors, height=0.72)
        for row, name in enumerate(names):
            _label(axis, times[name], row, f"{times[name]:.2f} s")
        axis.set_title(STATES[state], loc="left", fontsize=11, color=FAINT)
        axis.tick_params(left=False, bottom=False, labelbottom=False)
        axis.spines.bottom.set_visible(False)
        axis.set_xlim(0, 1.12 * max(times.values()))
    figure.suptitle("From process start to text: GPT-2 124M, float32, two cores", x=0.02, ha="left")
    _save(figure, path)


def waterfall(laps: dict[str, dict[str, float]], path: Path) -> None:
    """What each waits for until its text is there, beginning at the start of its process."""
    peers = ("llama.cpp f32", "CTranslate2 f32", "ONNX Runtime f32")
    names = [name for name in (*reversed(peers), OURS) if name in laps]
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
    axis.set_xlabel("milliseconds since the process began, page cache warm", color=FAINT)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for _, color in PARTS.values()]
    labels = [label for label, _ in PARTS.values()]
    figure.legend(handles, labels, ncols=4, loc="upper left", frameon=False, fontsize=10)
    figure.subplots_adjust(top=0.86)
    _save(figure, path, top=0.9)


def _label(axis: Any, x: float, row: int, text: str) -> None:
    """A number beside the end of its bar."""
    axis.annotate(
        text, (x, row), xytext=(5, 0), textcoords="offset points", va="center", color=FAINT
    )


def _save(figure: Any, path: Path, top: float = 1.0) -> None:
    figure.tight_layout(rect=(0, 0, 1, top))
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)
    print(f"docs/{path.name}")


if __name__ == "__main__":
    main()
