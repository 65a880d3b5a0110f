"""The engine of this repository, as in `python -m gpt2core generate` without its command line."""

import os
import sys

from bench import harness
from gpt2core.startup import prefetch, slim_numpy

folder = sys.argv[1]
os.environ.setdefault(*slim_numpy.BLAS_TIMEOUT)
prefetch.begin(folder)
slim_numpy.install()
from gpt2core.engine import Engine, import_kernels

import_kernels("auto")
harness.lap("imports")
engine = Engine.open(
    folder, prompt_lookup=False
)  # random weights would favour it: they generate repetitions
engine.read_ahead()
harness.lap("model")
engine.tokenizer  # noqa: B018 (opens it)
harness.lap("tokenizer")


def generate(prompt: str, count: int) -> str:
    done = engine.generate(prompt, count)
    assert len(done.ids) == count
    return prompt + done.text


def together(prompts: list[str], count: int) -> None:
    assert all(len(done.ids) == count for done in engine.generate_batch(prompts, count))


harness.main(generate, together)
