"""A peer: llama.cpp through llama-cpp-python, with model and tokenizer in one GGUF file."""

import sys
from itertools import islice

from llama_cpp import Llama

from bench import peer

peer.lap("imports")
llama = Llama(sys.argv[1], n_ctx=256, n_threads=2, n_threads_batch=2, verbose=False)
peer.lap("model")


def generate(prompt: str, count: int) -> str:
    llama.reset()  # it would skip what it remembers of the prompt
    ids = llama.tokenize(prompt.encode(), add_bos=False)
    new = list(islice(llama.generate(ids, temp=0.0, reset=True), count))
    assert len(new) == count
    return prompt + llama.detokenize(new).decode(errors="replace")


peer.main(generate)
