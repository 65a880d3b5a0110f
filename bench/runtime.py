"""Time to the first reply under AWS's emulator: this project's runtime against awslambdaric.

    make bench      or      python bench/runtime.py [--runs 15]

From the start of the emulator to the reply to the first event, alternating, with the packed demo
model. Needs the emulator that `make test` installs in `.venv-dev`. Writes
bench/results/runtime.json.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measure import ROOT, compare, save_results
from gpt2core.pack import pack
from tests.support.emulator import OURS, THEIRS, emulator, emulator_path

EVENT = {"prompt": "Once upon a time", "max_new_tokens": 1}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    path = emulator_path()
    if path is None:
        raise SystemExit("no emulator in .venv-dev: run make test")
    times: dict[str, list[float]] = {"awslambdaric": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        pack(ROOT / "models" / "demo", Path(folder) / "demo")
        environ = {"PATH": os.environ["PATH"], "GPT2_MODEL_DIR": str(Path(folder) / "demo")}
        for run in range(args.runs + 1):
            for name, command in (("awslambdaric", THEIRS), ("ours", OURS)):
                began = perf_counter()
                with emulator(path, Path(folder) / "log", environ, command) as function:
                    assert function.invoke(EVENT)["generated_text"]
                    if run:
                        times[name].append(perf_counter() - began)
    report = compare(times, "awslambdaric")
    ahead = [1000 * (t - o) for t, o in zip(times["awslambdaric"], times["ours"], strict=True)]
    report["ahead_ms"] = round(statistics.median(ahead), 1)
    print(f"ours is faster by {report['ahead_ms']} ms (median of the pairs)")
    save_results("runtime", report)


if __name__ == "__main__":
    main()
