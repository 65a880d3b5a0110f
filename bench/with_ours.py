"""Ours, as a script: the same as `python -m gpt2core generate`, without its command line."""

import sys

from bench import peer
from gpt2core import lean_numpy, read_ahead

folder = sys.argv[1]
read_ahead.begin(folder)
lean_numpy.load()
import numpy as np  # noqa: F401

peer.lap("imports")
from gpt2core.engine import Engine

engine = Engine.open(folder)
engine.read_ahead()
peer.lap("model")
engine.tokenizer  # noqa: B018 (opens it)
peer.lap("tokenizer")


def generate(prompt: str, count: int) -> str:
    done = engine.generate(prompt, count)
    assert len(done.ids) == count
    return prompt + done.text


peer.main(generate)
