"""A simple implementation in NumPy without a cache, like picoGPT.

Reads the weights with safetensors and the text with tokenizers.
"""

import sys

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from bench import harness

harness.lap("imports")
weights = load_file(f"{sys.argv[1]}/model.safetensors")
harness.lap("model")
tokenizer = Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")
harness.lap("tokenizer")
LAYERS, HEADS = 12, 12


def norm(x, name):
    centered = x - x.mean(-1, keepdims=True)
    scaled = centered / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * weights[name + ".weight"] + weights[name + ".bias"]


def affine(x, name):
    return x @ weights[name + ".weight"] + weights[name + ".bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(x, name):
    mask = np.triu(np.full((len(x), len(x)), -1e10, np.float32), 1)
    heads = []
    parts = [np.split(part, HEADS, -1) for part in np.split(affine(x, name + ".c_attn"), 3, -1)]
    for query, key, value in zip(*parts, strict=True):
        scores = np.exp(query @ key.T / np.sqrt(np.float32(key.shape[-1])) + mask)
        heads.append(scores / scores.sum(-1, keepdims=True) @ value)
    return affine(np.hstack(heads), name + ".c_proj")


def next_token(ids):
    x = weights["wte.weight"][ids] + weights["wpe.weight"][: len(ids)]
    for i in range(LAYERS):
        x = x + attention(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn")
        hidden = gelu(affine(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"))
        x = x + affine(hidden, f"h.{i}.mlp.c_proj")
    return int(np.argmax(norm(x, "ln_f")[-1] @ weights["wte.weight"].T))


def generate(prompt, count):
    ids = tokenizer.encode(prompt).ids
    for _ in range(count):
        ids.append(next_token(ids))
    return tokenizer.decode(ids)


harness.main(generate)
