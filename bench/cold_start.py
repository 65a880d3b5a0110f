"""Process start to the 10th token's text: ours against its peers, whole processes.

    make bench      or      python bench/cold_start.py [--runs 7] [--states warm,evicted,…]

Random weights of the 124M shape (see `random_model.py`), each peer with them in its own format, 4
prompt tokens, tokenizer included; until the text arrives at the process that waits. Floors are
timed to their end. Runs alternate, so that a machine that slows down slows all; a ratio is the
median of the ratios of runs side by side. States:

    warm      everything is in the page cache: the same process has just run, untimed (some virtual
              machines take idle pages away within seconds)
    evicted   the model's files are not
    dropped   nothing is: Python, libraries and model come from disk (needs root)
    volume    the model lies on a volume of 300 MB/s that takes 1 ms to answer (needs nbdkit, FUSE)

Writes bench/results/cold_start.json. `plots.py` makes the pictures of it.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import states
from bench.convert import converted
from bench.measure import MODELS, ROOT, Run, compared, in_checkout, in_turn, keep, run, times
from bench.random_model import make
from gpt2core.pack import pack

PROMPT = "My name is John"
NEW_TOKENS = "10"
OURS = "ours, packed f32"
STATES = ("warm", "evicted", "dropped", "volume")
# Where every run is seconds long: the ones that somebody would choose.
CHOSEN = (OURS, "ours, packed int8", "CTranslate2 f32", "CTranslate2 int8", "llama.cpp f32",
          "llama.cpp Q8_0", "transformers")  # fmt: skip


class Contestant(NamedTuple):
    """A script of `bench`, and the model that it opens; `file` within the folder, or all of it."""

    script: str
    folder: Path
    file: str = ""

    def command(self, folder: Path | None = None) -> list[str]:
        """The command line, with the model in another folder if one is given."""
        model = str((folder or self.folder) / self.file)
        return [sys.executable, str(ROOT / "bench" / self.script), model, PROMPT, NEW_TOKENS]


def main() -> None:
    parser = argparse.ArgumentParser(description="Cold start against the peers.")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--states", type=lambda s: s.split(","), default=STATES)
    args = parser.parse_args()
    everybody = contestants()
    report: dict[str, Any] = {}
    for state in args.states:
        chosen = {n: c for n, c in everybody.items() if state == "warm" or n in CHOSEN}
        reason = _cannot(state)
        if reason:
            print(f"\n{state}: left out, {reason}")
            continue
        print(f"\n{state}", flush=True)
        with ExitStack() as stack:
            done = _runs(state, chosen, args.runs if state == "warm" else 3, stack)
        report[state] = compared(times(done), OURS)
        if state == "warm":
            report["agree"] = _agreeing(done)
        report.setdefault("laps", {})[state] = {n: _laps(runs) for n, runs in done.items()}
    if set(args.states) == set(STATES):
        keep("cold_start", report)


def contestants() -> dict[str, Contestant]:
    """Everybody who can be had here, ours first."""
    published = make(MODELS / "gpt2-published").absolute()
    aligned = make(MODELS / "gpt2-aligned", aligned=True).absolute()
    found = {
        f"ours, packed {precision}": Contestant("with_ours.py", packed_model(published, precision))
        for precision in ("f32", "bf16", "int8")
    }
    found["ours, aligned file"] = Contestant("with_ours.py", aligned)
    found["ours, published file"] = Contestant("with_ours.py", published)
    for name, script, kind, precision, file in (
        ("llama.cpp f32", "with_llama_cpp.py", "gguf", "F32", "model.gguf"),
        ("llama.cpp bf16", "with_llama_cpp.py", "gguf", "BF16", "model.gguf"),
        ("llama.cpp Q8_0", "with_llama_cpp.py", "gguf", "Q8_0", "model.gguf"),
        ("CTranslate2 f32", "with_ctranslate2.py", "ctranslate2", "float32", ""),
        ("CTranslate2 int8", "with_ctranslate2.py", "ctranslate2", "int8", ""),
        ("ONNX Runtime f32", "with_onnxruntime.py", "onnx", "", ""),
    ):
        folder = converted(kind, published, precision)
        if folder:
            found[name] = Contestant(script, folder, file)
    found["transformers"] = Contestant("with_transformers.py", published)
    found["plain NumPy, no cache"] = Contestant("with_plain_numpy.py", published)
    return found


def packed_model(published: Path, precision: str) -> Path:
    """The model packed, made once."""
    folder = MODELS.absolute() / f"gpt2-packed-{precision}"
    if not (folder / "gpt2.manifest.json").exists():
        pack(published, folder, precision)
    return folder


def _cannot(state: str) -> str:
    """Why a state cannot be had here, or nothing."""
    if state == "dropped" and not states.can_drop_caches():
        return "which takes root"
    if state == "volume" and not states.can_slow_down():
        return "which takes nbdkit, nbdfuse and /dev/fuse"
    return ""


def _runs(
    state: str, chosen: dict[str, Contestant], runs: int, stack: ExitStack
) -> dict[str, list[Run]]:
    folders = {name: contestant.folder for name, contestant in chosen.items()}
    if state == "volume":
        folders = {n: stack.enter_context(states.slow_volume(f)) for n, f in folders.items()}
    commands = {name: c.command(folders[name]) for name, c in chosen.items()}
    packed = str(folders[OURS] / "packed.safetensors")
    if state == "warm":
        folders["import numpy"] = folders["bare interpreter"] = Path(packed).parent
        commands["import numpy"] = [sys.executable, "-c", "import numpy"]
        commands["bare interpreter"] = [sys.executable, "-c", "pass"]
    else:
        folders["dd of the packed f32"] = folders[OURS]
        commands["dd of the packed f32"] = ["dd", f"if={packed}", "of=/dev/null", "bs=128k"]
    before: dict[str, Callable[[str], None]] = {
        "warm": lambda name: _run_once(commands[name]),
        "evicted": lambda name: states.evict(folders[name]),
        "dropped": lambda _name: states.drop_caches(),
        "volume": lambda name: states.evict(folders[name]),
    }
    return in_turn(commands, runs, in_checkout(), before[state])


def _run_once(command: list[str]) -> None:
    run(command, in_checkout())


def _agreeing(done: dict[str, list[Run]]) -> list[str]:
    """Who gave the text that ours gives in f32: the same network, computed by somebody else."""
    text = done[OURS][0].text
    agreeing = [name for name, runs in done.items() if all(r.text == text for r in runs)]
    print(f"the same text: {', '.join(agreeing)}")
    return agreeing


def _laps(runs: list[Run]) -> dict[str, float]:
    """Median milliseconds from the process start to the end of each part."""
    names = runs[0].report.get("laps", {})
    return {n: round(1000 * median(r.report["laps"][n] for r in runs), 1) for n in names}


if __name__ == "__main__":
    main()
