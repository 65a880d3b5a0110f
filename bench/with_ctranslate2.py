"""A peer: the same prompt continued by CTranslate2, from process start to text.

python bench/with_ctranslate2.py MODEL_DIR TOKENIZER_JSON PROMPT N
"""

import sys

import ctranslate2
from tokenizers import Tokenizer

folder, tokenizer_json, prompt, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
generator = ctranslate2.Generator(folder, device="cpu")
tokenizer = Tokenizer.from_file(tokenizer_json)
tokens = tokenizer.encode(prompt).tokens
(result,) = generator.generate_batch(
    [tokens], max_length=count, min_length=count, sampling_topk=1, include_prompt_in_result=False
)
assert len(result.sequences_ids[0]) == count
print(prompt + tokenizer.decode(result.sequences_ids[0]))
