"""Import times of a cold invoke: medians over several processes.

    make bench      or      python bench/imports.py [--runs 9]

Each process handles a greedy and a sampled request with the demo model under `-X importtime`, which
adds some overhead. A module's time includes the modules that it is the first to import. Writes
bench/results/imports.json.
"""

import argparse
import re
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.measure import ROOT, environment, machine, save_results

MODULES = (
    "site",
    "handler.app",
    "json",
    "re",
    "gpt2core.engine",
    "gpt2core.kernels.native",
    "tokenizers",
    "numpy._core",
)
CODE = (
    "from handler.app import lambda_handler; lambda_handler({'prompt': 'Once'});"
    "lambda_handler({'prompt': 'Once', 'temperature': 1})"
)
LINE = re.compile(r"import time: +(\d+) \| +(\d+) \| +([\w.]+)$")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in MODULES}
    for _ in range(args.runs + 1):  # the first run writes bytecode
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", CODE],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=environment(),
        )
        for line in done.stderr.splitlines():
            match = LINE.match(line)
            if match and match[3] in times:
                times[match[3]].append(int(match[2]) / 1000)
    medians = {
        name: round(statistics.median(values[1:]), 1) for name, values in times.items() if values
    }
    for name in MODULES:
        print(f"{name:<24}{medians[name]:>7.1f} ms" if name in medians else f"{name:<24}  none")
    save_results("imports", {"machine": machine(), "median_ms": medians})


if __name__ == "__main__":
    main()
