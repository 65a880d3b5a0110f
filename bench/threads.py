"""Threads of the kernels beside other work, and memory: one process, 124M shape in int8.

    make bench      or      python bench/threads.py [--rounds 40]

Random weights. What is compared alternates; ratios are medians of the ratios of neighbours:

    one CPU    a token with two threads that share one CPU, against one thread there
    busy       a token while 1 or 2 Python threads run pure Python code, against none: with the
               interval of handing over the GIL that `serve` sets, and with Python's default
    idle       CPU time used from 1 ms after a pass to 100 ms after it
    limited    512 positions in a memory cgroup of 256 MB: page faults that read from the disk
               after the first pass, where root can make a cgroup (version 1)

Writes bench/results/threads.json.
"""

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import perf_counter, process_time, sleep
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measure import MODELS, REMOVED_VARIABLES, save_results

MEMORY = Path("/sys/fs/cgroup/memory")
LIMIT = 256 << 20
POSITIONS = 512
WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--limited", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in REMOVED_VARIABLES:  # before NumPy is imported
        os.environ.pop(name, None)
    if args.limited:
        print(_faults(args.limited))
        return
    from bench.implementations import packed_model
    from bench.random_model import make
    from handler.decoding_thread import GIL_SWITCH_INTERVAL

    folder = str(packed_model(make(MODELS / "gpt2-published").absolute(), "int8"))
    report = {
        "one_cpu": on_one_cpu(folder, args.rounds),
        "busy": {str(n): busy(folder, n, args.rounds, GIL_SWITCH_INTERVAL) for n in (1, 2)},
        "busy_default": {str(n): busy(folder, n, args.rounds) for n in (1, 2)},
        "idle_cpu_ms": idle(folder, args.rounds),
        "limited": limited(folder),
    }
    print(report)
    save_results("threads", report)


def _decoder(folder: str) -> Any:
    """Each call decodes one token; the first after 64 positions."""
    from gpt2core import Engine
    from gpt2core.generation import Prompt

    engine = Engine.open(folder, kernels="native", prompt_lookup=False)
    scheduler = engine.scheduler()
    scheduler.add(Prompt(0, [1] * 64, engine.config.n_positions - 64))
    for _ in range(WARM_UP):
        scheduler.step()
    return scheduler.step


def _seconds(step: Any, tokens: int = 5) -> float:
    began = perf_counter()
    for _ in range(tokens):
        step()
    return perf_counter() - began


def on_one_cpu(folder: str, rounds: int) -> float:
    """A token with two threads on one CPU, times one thread."""
    from gpt2core.kernels.native import set_threads

    step = _decoder(folder)
    cpus = os.sched_getaffinity(0)
    ratios = []
    os.sched_setaffinity(0, {min(cpus)})  # workers start later and inherit it
    for _ in range(rounds):
        took = []
        for threads in (1, 2):
            set_threads(threads)
            step()
            took.append(_seconds(step))
        ratios.append(took[1] / took[0])
    os.sched_setaffinity(0, cpus)
    set_threads(len(cpus))
    return round(median(ratios), 3)


@contextmanager
def _python_threads(n: int) -> Iterator[None]:
    done = Event()

    def count() -> None:
        while not done.is_set():
            sum(range(1000))

    threads = [Thread(target=count) for _ in range(n)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def busy(folder: str, threads: int, rounds: int, interval: float | None = None) -> float:
    """A token beside busy Python threads, times one without them."""
    step = _decoder(folder)
    default = sys.getswitchinterval()
    sys.setswitchinterval(interval or default)
    ratios = []
    for _ in range(rounds):
        alone = _seconds(step)
        with _python_threads(threads):
            ratios.append(_seconds(step) / alone)
    sys.setswitchinterval(default)
    return round(median(ratios), 3)


def idle(folder: str, rounds: int) -> float:
    """Median milliseconds of CPU time that the process uses when a pass is long over."""
    step = _decoder(folder)
    used = []
    for _ in range(rounds):
        step()
        sleep(0.001)
        began = process_time()
        sleep(0.099)
        used.append(process_time() - began)
    return round(1000 * median(used), 3)


def limited(folder: str) -> dict[str, Any] | None:
    """The faults of a process of its own in a cgroup of 256 MB."""
    group = MEMORY / f"gpt2-bench-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as exc:
        print(f"no memory cgroup can be made here: {exc}")
        return None
    try:
        (group / "memory.limit_in_bytes").write_text(str(LIMIT))
        command = [sys.executable, __file__, "--limited", folder]
        done = subprocess.run(
            ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh", *command],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        peak = int((group / "memory.max_usage_in_bytes").read_text()) >> 20
        return {"major_faults_after_first_pass": int(done.stdout), "peak_mb": peak}
    finally:
        group.rmdir()


def _faults(folder: str) -> int:
    """Evict the model, so that its pages count for this cgroup; decode up to 512 positions."""
    from bench.states import evict
    from gpt2core import Engine

    evict(Path(folder))
    engine = Engine.open(folder, kernels="native", prompt_lookup=False)
    engine.generate_ids([1, 2, 3, 4], 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    engine.generate_ids([1] * (POSITIONS // 2), POSITIONS // 2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before


if __name__ == "__main__":
    main()
