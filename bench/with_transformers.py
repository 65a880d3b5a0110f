"""The peer: the same prompt continued by transformers and torch, from process start to text.

python bench/with_transformers.py MODEL_DIR PROMPT N
"""

import sys

import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

folder, prompt, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
inputs = tokenizer(prompt, return_tensors="pt")
ids = model.generate(
    **inputs, do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=50256
)
print(tokenizer.decode(ids[0]))
