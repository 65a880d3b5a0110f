"""The names of the files that a model directory may hold. Raw ones are Hugging Face's."""

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.json"
# Read where there is no `TOKENIZER_FILE`; the last two may be missing.
VOCABULARY_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json")
PACKED_FILE = "packed.safetensors"
TABLES_FILE = "tokenizer.safetensors"
MANIFEST_FILE = "gpt2.manifest.json"
# What a packed file says it is, and what it was made as: another number is another layout.
PACKED_FORMAT = "gpt2-packed-2"
