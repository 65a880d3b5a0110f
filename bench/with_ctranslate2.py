"""A peer: CTranslate2, with the model in its own format and the published tokenizer."""

import sys

import ctranslate2
from tokenizers import Tokenizer

from bench import peer

peer.lap("imports")
generator = ctranslate2.Generator(sys.argv[1], device="cpu")
peer.lap("model")
tokenizer = Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")
peer.lap("tokenizer")


def generate(prompt: str, count: int) -> str:
    (result,) = generator.generate_batch(
        [tokenizer.encode(prompt).tokens],
        max_length=count,
        min_length=count,
        sampling_topk=1,
        include_prompt_in_result=False,
    )
    assert len(result.sequences_ids[0]) == count
    return prompt + str(tokenizer.decode(result.sequences_ids[0]))


peer.main(generate)
