"""Ours: 32 prompts together, or one after the other."""

import sys
from time import perf_counter

from bench.throughput import COUNT, PROMPTS, REPEATS, tell
from gpt2core.engine import Engine

engine = Engine.open(sys.argv[1])
took = []
for _ in range(REPEATS):
    began = perf_counter()
    if sys.argv[2] == "together":
        done = engine.generate_batch(PROMPTS, COUNT)
    else:
        done = [engine.generate(prompt, COUNT) for prompt in PROMPTS]
    took.append(perf_counter() - began)
tell(took, [generation.text for generation in done])
