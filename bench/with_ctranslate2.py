"""CTranslate2, with the model in its own format and the published tokenizer."""

import sys

import ctranslate2
from tokenizers import Tokenizer

from bench import harness

harness.lap("imports")
generator = ctranslate2.Generator(sys.argv[1], device="cpu")
harness.lap("model")
tokenizer = Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")
harness.lap("tokenizer")


def continuations(prompts: list[str], count: int) -> list[list[int]]:
    results = generator.generate_batch(
        [encoding.tokens for encoding in tokenizer.encode_batch(prompts)],
        max_length=count,
        min_length=count,
        sampling_topk=1,
        include_prompt_in_result=False,
    )
    assert all(len(result.sequences_ids[0]) == count for result in results)
    return [result.sequences_ids[0] for result in results]


def generate(prompt: str, count: int) -> str:
    return prompt + str(tokenizer.decode(continuations([prompt], count)[0]))


harness.main(generate, lambda prompts, count: tokenizer.decode_batch(continuations(prompts, count)))
