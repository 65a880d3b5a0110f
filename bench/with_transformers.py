"""transformers and torch, used as in their documentation."""

import sys

import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from bench import harness

harness.lap("imports")
folder = sys.argv[1]
model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
harness.lap("model")
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
harness.lap("tokenizer")


def generate(prompt: str, count: int) -> str:
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(
        **inputs, do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=50256
    )
    return str(tokenizer.decode(ids[0]))


def together(prompts: list[str], count: int) -> None:
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    ids = model.generate(
        **inputs, do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=50256
    )
    tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :])


harness.main(generate, together)
