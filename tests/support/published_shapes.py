"""Small models in the layouts in which fine-tunes of GPT-2 are published.

`save_pretrained` of `transformers` writes each, and some are then changed to the output of older
versions or other tools. Imported only if `transformers` is installed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
)

from gpt2core.tokenizer.bpe import byte_alphabet
from tests.support.models import END_OF_TEXT, random_tensors

WEIGHTS = "model.safetensors"
MERGES = [("h", "e"), ("l", "l"), ("Ġ", "t"), ("Ġt", "he"), ("he", "ll"), ("hell", "o"), ("i", "n")]
# 256 bytes, the merges, the end-of-text token
SIZE = 256 + len(MERGES) + 1
SMALL = {"vocab_size": SIZE, "n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 3,
         "bos_token_id": SIZE - 1, "eos_token_id": SIZE - 1}  # fmt: skip


def vocabulary() -> dict[str, int]:
    vocab = dict(byte_alphabet())
    for left, right in MERGES:
        vocab[left + right] = len(vocab)
    return vocab | {END_OF_TEXT: len(vocab)}


def gpt2_tokenizer(**settings: Any) -> GPT2Tokenizer:
    return GPT2Tokenizer(vocab=vocabulary(), merges=MERGES, **settings)


def gpt2_model(seed: int = 0, **changes: Any) -> GPT2LMHeadModel:
    """Random weights that are large enough for logits to differ by more than rounding errors."""
    config = GPT2Config(**SMALL | changes)
    model = GPT2LMHeadModel(config)
    tensors = random_tensors(config.to_dict(), seed)
    state = {
        name if name.startswith("lm_head") else f"transformer.{name}": torch.from_numpy(array)
        for name, array in tensors.items()
    }
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model.eval()


def save(folder: Path, tokenizer: Any = None, model: Any = None, **changes: Any) -> None:
    """Save a model and a tokenizer with this version of `transformers`."""
    (gpt2_model(**changes) if model is None else model).save_pretrained(folder)
    (tokenizer or gpt2_tokenizer()).save_pretrained(folder)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors = change(tensors) or tensors
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, folder / WEIGHTS)


def as_two_files(folder: Path, **beside: Any) -> None:
    """Write vocab.json and merges.txt as before 2020, and the JSON files in `beside`."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary(), ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    for stem, content in beside.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))


def of_tokenizers(**parts: Any) -> PreTrainedTokenizerFast:
    """A tokenizer built with the `tokenizers` package."""
    rust = Tokenizer(models.BPE(vocab=vocabulary(), merges=MERGES))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(rust, name, part)
    rust.add_special_tokens([END_OF_TEXT])
    return PreTrainedTokenizerFast(tokenizer_object=rust, eos_token=END_OF_TEXT)


def with_prefix() -> PreTrainedTokenizerFast:
    return of_tokenizers(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))


def lower_case() -> PreTrainedTokenizerFast:
    return of_tokenizers(normalizer=normalizers.Lowercase())


CHAT = ["<|im_start|>", "<|im_end|>"]


def chat(folder: Path) -> None:
    tokenizer = gpt2_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": CHAT, "pad_token": "<pad>"})
    model = gpt2_model()
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.eos_token_id = [SIZE - 1, SIZE + 1]
    save(folder, tokenizer, model)


def chat_of_2021(folder: Path) -> None:
    save(folder, vocab_size=SIZE + 4)
    ids = {token: SIZE + i for i, token in enumerate(["<user>", "<bot>", *CHAT])}
    as_two_files(
        folder,
        added_tokens=ids,
        special_tokens_map={"eos_token": "<|im_end|>", "additional_special_tokens": CHAT},
        tokenizer_config={"model_max_length": 64, "tokenizer_class": "GPT2Tokenizer"},
    )


def chat_of_2023(folder: Path) -> None:
    save(folder, vocab_size=SIZE + 2)
    flags = {"lstrip": False, "normalized": False, "single_word": False, "special": True}
    decoder = {
        str(SIZE - 1): {"content": END_OF_TEXT, "rstrip": False, **flags},
        str(SIZE): {"content": CHAT[0], "rstrip": False, **flags},
        str(SIZE + 1): {"content": CHAT[1], "rstrip": True, **flags},
    }
    as_two_files(
        folder,
        added_tokens={"<stale>": SIZE},
        special_tokens_map={"pad_token": "<other>"},
        tokenizer_config={"added_tokens_decoder": decoder, "additional_special_tokens": CHAT},
    )


def words(folder: Path) -> None:
    tokenizer = gpt2_tokenizer()
    tokenizer.add_tokens(
        [
            AddedToken("wolf", single_word=True),
            AddedToken("<tab>", lstrip=True, rstrip=True),
            AddedToken("\n\n", normalized=False),
        ]
    )
    model = gpt2_model()
    model.resize_token_embeddings(len(tokenizer))
    save(folder, tokenizer, model)


def resized(folder: Path, multiple: int | None = None) -> None:
    tokenizer = gpt2_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(["<sep>"])
    model = gpt2_model()
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=multiple)
    save(folder, tokenizer, model)


def sharded(folder: Path) -> None:
    gpt2_model().save_pretrained(folder, max_shard_size="30KB")
    gpt2_tokenizer().save_pretrained(folder)
    assert not (folder / WEIGHTS).exists()


def old_keys(folder: Path) -> None:
    """As in the published gpt2: no prefix, and a causal mask in every layer."""
    save(folder)

    def strip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        mask = torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64)
        masks = {f"h.{i}.attn.bias": mask for i in range(2)}
        return bare | masks

    rewrite(folder, strip)


def masks_with_prefix(folder: Path) -> None:
    save(folder, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True)
    mask = torch.tril(torch.ones(64, 64, dtype=torch.uint8)).view(1, 1, 64, 64)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for i in range(2):
            tensors[f"transformer.h.{i}.attn.bias"] = mask
            tensors[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)

    rewrite(folder, add)


def head_only(folder: Path) -> None:
    """Tied weights as written by `safetensors.torch.save_model`."""
    save(folder)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")

    rewrite(folder, rename)


def both_heads(folder: Path, factor: float) -> None:
    save(folder)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        rows = torch.where(torch.arange(SIZE) % 3 == 0, factor, 1.0)
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] * rows[:, None]

    rewrite(folder, add)


def foreign_types(folder: Path) -> None:
    """Additional tensors with dtypes that NumPy does not have."""
    save(folder)
    rewrite(
        folder,
        lambda tensors: (
            tensors
            | {
                "value_head.scale": torch.zeros(4, dtype=torch.float8_e5m2),
                "value_head.phase": torch.zeros(3, dtype=torch.complex64),
            }
        ),
    )


def other_class(folder: Path, kind: Any) -> None:
    lm = gpt2_model()
    config = GPT2Config(**SMALL | {"pad_token_id": SIZE - 1, "num_labels": 2})
    model = kind(config)
    inner = model if kind is GPT2Model else model.transformer
    inner.load_state_dict(lm.transformer.state_dict())
    save(folder, model=model)


def old_dump(folder: Path) -> None:
    """`config.json` with all fields of version 4, and no `generation_config.json`."""
    save(folder)
    (folder / "generation_config.json").unlink()
    defaults = {
        "bad_words_ids": None, "min_length": 0, "max_length": 20, "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "num_beams": 1, "top_k": 50,
        "do_sample": False, "length_penalty": 1.0, "forced_bos_token_id": None, "pruned_heads": {},
        "gradient_checkpointing": False, "n_ctx": 64, "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    }  # fmt: skip
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | defaults))


def aliases(folder: Path) -> None:
    save(folder)
    fields = json.loads((folder / "config.json").read_text())
    for old, new in (("n_embd", "hidden_size"), ("n_layer", "num_hidden_layers")):
        fields[new] = fields.pop(old)
    (folder / "config.json").write_text(json.dumps(fields))


def ends(folder: Path, generation: Any, **changes: Any) -> None:
    save(folder, **changes)
    (folder / "generation_config.json").write_text(json.dumps(generation))


def dialogpt(folder: Path, **settings: Any) -> None:
    save(folder)
    as_two_files(folder, tokenizer_config={"model_max_length": 64, **settings})


def bos_beside_tokenizer_json(folder: Path) -> None:
    save(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": True}))


def code_parrot(folder: Path) -> None:
    """A vocabulary that starts with the end-of-text token."""
    vocab = {END_OF_TEXT: 0} | {c: 1 + b for c, b in byte_alphabet().items()}
    tokenizer = GPT2Tokenizer(vocab=vocab, merges=[])
    changes = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": len(vocab)}
    model = gpt2_model(
        scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True, **changes
    )
    save(folder, tokenizer, model)


def ru_gpt(folder: Path) -> None:
    save(folder, vocab_size=SIZE + 5)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokens = {
        key: {"content": token, "lstrip": key == "bos_token", "normalized": True, "rstrip": False,
              "single_word": False}
        for key, token in names.items()
    }  # fmt: skip
    as_two_files(folder, special_tokens_map={**tokens, "mask_token": "<mask>"})


class Shape(NamedTuple):
    name: str
    write: Callable[[Path], None]
    dtype: torch.dtype | None = None
    """The dtype to convert the weights to."""


def _saved(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: save(folder, **changes)


SHAPES = (
    Shape("gpt2", _saved()),
    Shape("distilled", _saved(n_layer=1, seed=1)),
    Shape("medium", _saved(n_layer=4, n_head=4, n_embd=32, seed=2)),
    Shape("cerebras", _saved(activation_function="gelu", n_inner=96, layer_norm_epsilon=1e-5)),
    Shape("code-parrot", code_parrot),
    Shape("crfm-with-masks", masks_with_prefix),
    Shape("published-keys-and-masks", old_keys),
    Shape("padded-vocabulary", _saved(vocab_size=SIZE + 7)),
    Shape("resized", resized),
    Shape("resized-to-a-multiple", lambda folder: resized(folder, 16)),
    Shape("shards", sharded),
    Shape("float16", _saved(), torch.float16),
    Shape("bfloat16", _saved(), torch.bfloat16),
    Shape("bfloat16-untied", _saved(tie_word_embeddings=False, seed=3), torch.bfloat16),
    Shape("untied", _saved(tie_word_embeddings=False, seed=4)),
    Shape("head-only", head_only),
    Shape("two-equal-heads", lambda folder: both_heads(folder, 1.0)),
    Shape("separate-head-although-tied", lambda folder: both_heads(folder, 2.0)),
    Shape("negative-head", lambda folder: both_heads(folder, -1.0)),
    Shape("no-head-class", lambda folder: other_class(folder, GPT2Model)),
    Shape("classifier", lambda folder: other_class(folder, GPT2ForSequenceClassification)),
    Shape("double-heads", lambda folder: other_class(folder, GPT2DoubleHeadsModel)),
    Shape("foreign-types", foreign_types),
    Shape("n-inner-relu", _saved(n_inner=37, activation_function="relu", seed=5)),
    Shape("tanh-gelu", _saved(activation_function="gelu_pytorch_tanh", seed=6)),
    Shape("unscaled-attention", _saved(scale_attn_weights=False, n_embd=21, seed=7)),
    Shape("epsilon", _saved(layer_norm_epsilon=1e-6, seed=8)),
    Shape("old-config", old_dump),
    Shape("other-names", aliases),
    Shape("two-ends", lambda folder: ends(folder, {"eos_token_id": [SIZE - 1, 42, 96]})),
    Shape("no-end", lambda folder: ends(folder, {}, eos_token_id=42)),
    Shape("ends-in-config", _saved(eos_token_id=[42, 96])),
    Shape("dialogpt", dialogpt),
    Shape("chat", chat),
    Shape("chat-of-2021", chat_of_2021),
    Shape("chat-of-2023", chat_of_2023),
    Shape("added-words", words),
    Shape("names-of-special-tokens", ru_gpt),
    Shape("prefix-space", lambda folder: save(folder, gpt2_tokenizer(add_prefix_space=True))),
    Shape("begins-with-bos", lambda folder: dialogpt(folder, add_bos_token=True)),
    Shape("bos-beside-tokenizer-json", bos_beside_tokenizer_json),
    Shape("of-tokenizers", lambda folder: save(folder, of_tokenizers())),
    Shape("of-tokenizers-with-prefix", lambda folder: save(folder, with_prefix())),
    Shape("lower-case", lambda folder: save(folder, lower_case())),
)


def write_shape(shape: Shape, folder: Path) -> Path:
    shape.write(folder)
    if shape.dtype is not None:
        rewrite(folder, lambda tensors: {n: t.to(shape.dtype) for n, t in tensors.items()})
    return folder
