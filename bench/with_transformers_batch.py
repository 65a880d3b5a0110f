"""A peer: transformers and torch with one padded batch, as their documentation has it."""

import sys
from time import perf_counter

import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from bench.throughput import COUNT, PROMPTS, REPEATS, tell

folder = sys.argv[1]
model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
tokenizer.pad_token = tokenizer.eos_token
took = []
for _ in range(REPEATS):
    began = perf_counter()
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    ids = model.generate(
        **inputs, do_sample=False, max_new_tokens=COUNT, min_new_tokens=COUNT, pad_token_id=50256
    )
    texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
    took.append(perf_counter() - began)
tell(took, texts)
