"""The Lambda function of the peer's image: transformers and torch, loaded in the init phase."""

import os
from typing import Any

import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

folder = os.environ.get("MODEL", "models/demo")
model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)


def lambda_handler(event: dict[str, Any], _context: object) -> dict[str, str]:
    inputs = tokenizer(event["prompt"], return_tensors="pt")
    count = event["max_new_tokens"]
    ids = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        pad_token_id=model.config.eos_token_id,
    )
    new = ids[0, inputs["input_ids"].shape[1] :]
    return {"generated_text": str(tokenizer.decode(new, skip_special_tokens=True))}
