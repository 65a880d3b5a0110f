"""ONNX Runtime, with keys and values as inputs and outputs of the graph, as in its guides."""

import os
import sys

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from bench import harness

harness.lap("imports")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = len(os.sched_getaffinity(0))
session = onnxruntime.InferenceSession(
    f"{sys.argv[1]}/model.onnx", options, providers=["CPUExecutionProvider"]
)
harness.lap("model")
tokenizer = Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")
harness.lap("tokenizer")
layers, heads, head_dim = 12, 12, 64


def generate(prompt: str, count: int) -> str:
    ids = tokenizer.encode(prompt).ids
    past = np.zeros((2, layers, heads, 0, head_dim), np.float32)
    step, new = np.array(ids), []
    while len(new) < count:
        token, past = session.run(["token", "present"], {"ids": step, "past": past})
        step = token.reshape(1)
        new.append(int(step[0]))
    return str(tokenizer.decode(ids + new))


harness.main(generate)
