"""A peer: transformers and torch, as their documentation has it."""

import sys

import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from bench import peer

peer.lap("imports")
folder = sys.argv[1]
model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
peer.lap("model")
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
peer.lap("tokenizer")


def generate(prompt: str, count: int) -> str:
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(
        **inputs, do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=50256
    )
    return str(tokenizer.decode(ids[0]))


peer.main(generate)
