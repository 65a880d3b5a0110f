"""llama.cpp through llama-cpp-python, with model and tokenizer in one GGUF file."""

import os
import sys
from itertools import islice
from typing import Any

import llama_cpp
from llama_cpp import Llama

from bench import harness

harness.lap("imports")
# ggml 0.25 crashes in its AMX kernels (ldtilecfg, on Sapphire Rapids under Firecracker). They need
# the "extra" buffers.
with open("/proc/cpuinfo") as cpu:
    if "amx_tile" in cpu.read():
        defaults = llama_cpp.llama_model_default_params

        def without_extra_buffers() -> Any:
            params = defaults()
            params.use_extra_bufts = False
            return params

        llama_cpp.llama_cpp.llama_model_default_params = without_extra_buffers
threads = len(os.sched_getaffinity(0))
context = 1024 if sys.argv[4:] else 256  # memory for the whole context is allocated at once
llama = Llama(sys.argv[1], n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)
harness.lap("model")


def generate(prompt: str, count: int) -> str:
    llama.reset()  # forget the prompt, which it would not process again
    ids = llama.tokenize(prompt.encode(), add_bos=False)
    new = list(islice(llama.generate(ids, temp=0.0, reset=True), count))
    assert len(new) == count
    return prompt + llama.detokenize(new).decode(errors="replace")


def together(prompts: list[str], count: int) -> None:
    """As in llama.cpp's examples: a context of many sequences, and batches with a row of each."""
    import numpy as np

    api = llama_cpp
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_seq_max = 256 * len(prompts), 512, len(prompts)
    params.n_threads = params.n_threads_batch = threads
    many = api.llama_init_from_model(llama.model, params)
    batch = api.llama_batch_init(512, 0, 1)
    vocabulary = llama.n_vocab()

    def row(token: int, position: int, sequence: int, *, logits: bool) -> None:
        at = batch.n_tokens
        batch.token[at], batch.pos[at] = token, position
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        batch.logits[at] = logits
        batch.n_tokens += 1

    def next_tokens(rows: list[int]) -> list[int]:
        assert api.llama_decode(many, batch) == 0
        logits = (api.llama_get_logits_ith(many, at) for at in rows)
        return [int(np.ctypeslib.as_array(scores, (vocabulary,)).argmax()) for scores in logits]

    ids = [llama.tokenize(prompt.encode(), add_bos=False) for prompt in prompts]
    last = []
    for sequence, tokens in enumerate(ids):
        for position, token in enumerate(tokens):
            row(token, position, sequence, logits=position == len(tokens) - 1)
        last.append(batch.n_tokens - 1)
    new = [[token] for token in next_tokens(last)]
    for step in range(count - 1):
        batch.n_tokens = 0
        for sequence, tokens in enumerate(new):
            row(tokens[-1], len(ids[sequence]) + step, sequence, logits=True)
        for tokens, token in zip(new, next_tokens(list(range(len(new)))), strict=True):
            tokens.append(token)
    assert [llama.detokenize(tokens) for tokens in new]
    api.llama_batch_free(batch)
    api.llama_free(many)


harness.main(generate, together)
