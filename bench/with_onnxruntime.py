"""A peer: ONNX Runtime, with keys and values that go in and out of the graph as its guides do."""

import os
import sys

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from bench import peer

peer.lap("imports")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = len(os.sched_getaffinity(0))
session = onnxruntime.InferenceSession(
    f"{sys.argv[1]}/model.onnx", options, providers=["CPUExecutionProvider"]
)
peer.lap("model")
tokenizer = Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")
peer.lap("tokenizer")
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


peer.main(generate)
