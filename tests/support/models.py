"""Small model directories for tests, written without torch and the same on every machine."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gpt2core import Engine
from gpt2core.config import GPT2Config
from gpt2core.files.checkpoint import expected_shapes
from gpt2core.files.safetensors import Tensor
from gpt2core.kernels.matrix import Matrix
from gpt2core.kernels.reference import to_float32

END_OF_TEXT = "<|endoftext|>"
Tensors = dict[str, NDArray[np.float32]]


def small_config(**changes: Any) -> dict[str, Any]:
    """A `config.json` with 257 tokens: every byte and the end-of-text token."""
    return {
        "model_type": "gpt2",
        "vocab_size": 257,
        "n_positions": 64,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 3,
        "bos_token_id": 256,
        "eos_token_id": 256,
    } | changes


def uniform(seed: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Pseudo-random float32 in [-0.5, 0.5), independent of library versions: splitmix64 of seed and
    index (Steele, Lea & Flood 2014).
    """
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed * 1_000_003 % 2**63)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    unit = (z >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    return (unit - np.float32(0.5)).reshape(shape)


def random_tensors(config: Mapping[str, Any], seed: int = 0) -> Tensors:
    """Weights that are large enough for logits to differ by more than rounding errors."""
    tensors = {}
    for i, (name, shape) in enumerate(expected_shapes(GPT2Config.from_dict(config)).items()):
        noise = uniform(1000 * seed + i, shape)
        if "ln_" in name and name.endswith("weight"):
            tensors[name] = 1 + noise
        elif name.startswith(("wte", "wpe", "lm_head")):
            tensors[name] = 2 * noise
        else:
            tensors[name] = noise * np.float32(4 / np.sqrt(shape[0]))
    return tensors


def write_model(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, NDArray[Any]] | None = None,
    *,
    tokenizer: bool = True,
    seed: int = 0,
) -> Path:
    """A complete model directory; random weights unless `tensors` are given."""
    config = small_config() if config is None else config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    save_file(
        dict(random_tensors(config, seed) if tensors is None else tensors),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    if tokenizer:
        byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def write_sharded_model(folder: Path) -> Path:
    """A complete model directory with two shards and their index."""
    write_model(folder)
    (folder / "model.safetensors").unlink()
    tensors = random_tensors(small_config())
    names = list(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{i}-of-00002.safetensors"
        save_file({name: np.ascontiguousarray(tensors[name]) for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def byte_tokenizer(merges: Sequence[tuple[str, str]] = ()) -> Tokenizer:
    """Byte-level BPE: token b is byte b, followed by the merges and the end-of-text token."""
    from gpt2core.tokenizer.bpe import byte_alphabet

    vocab = dict(byte_alphabet())
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    return tokenizer


def write_scripted_model(folder: Path, script: Sequence[int], n_positions: int = 0) -> Path:
    """A GPT-2 whose greedy token after position p is `script[p]`.

    Token embeddings and blocks are zero, and the output embeddings are the identity. The embedding
    of a position is one-hot on the next token.
    """
    n_positions = n_positions or len(script) + 1  # including the last token
    config = small_config(n_embd=257, n_head=1, n_layer=1, n_positions=n_positions) | {
        "tie_word_embeddings": False
    }
    tensors: Tensors = {
        name: np.zeros(shape, np.float32)
        for name, shape in expected_shapes(GPT2Config.from_dict(config)).items()
    }
    for position, token in enumerate(script):
        tensors["wpe.weight"][position, token] = 1
    for name in tensors:
        if "ln_" in name and name.endswith("weight"):
            tensors[name] += 1
    tensors["lm_head.weight"] = np.eye(257, dtype=np.float32)
    return write_model(folder, config, tensors)


def script_for(prompt: str, continuation: bytes | Sequence[int]) -> list[int]:
    """The script for `continuation` after `prompt` (one token per byte)."""
    return [0] * (len(prompt.encode()) - 1) + list(continuation)


def assert_same_weights(a: Engine, b: Engine) -> None:
    """Assert that all weights are equal, in any layout; products would differ by rounding."""
    ours, theirs = a._forward.weights, b._forward.weights
    assert (to_float32(ours.lm_head.tensor) == to_float32(theirs.lm_head.tensor)).all()
    for name in ("wte.weight", "wpe.weight"):
        assert (to_float32(ours.tensors[name]) == to_float32(theirs.tensors[name])).all()
    for i in range(a.config.n_layer):
        for one, other in zip(_flat(ours.block(i)), _flat(theirs.block(i)), strict=True):
            assert (one == other).all()


def _flat(parts: object) -> list[np.ndarray[Any, Any]]:
    if isinstance(parts, (np.ndarray, memoryview)):
        return [np.asarray(parts)]
    if isinstance(parts, Matrix):
        return [to_float32(parts.tensor), np.asarray(parts.bias)]
    if isinstance(parts, float):
        return [np.array(parts)]
    return [array for part in parts for array in _flat(part)]  # type: ignore[attr-defined]


def tensor_of(array: NDArray[Any], dtype: str, scale: NDArray[np.float32] | None = None) -> Tensor:
    """A tensor that is stored like `array`, at an odd address as in published files."""
    raw = memoryview(b"x" + np.ascontiguousarray(array).tobytes())[1:]
    tensor = Tensor(dtype, array.shape, raw, "", is_aligned=False)
    if scale is None:
        return tensor
    return tensor._replace(scale=Tensor("F32", scale.shape, memoryview(scale.tobytes()), ""))


def write_safetensors(
    path: Path, tensors: dict[str, tuple[str, NDArray[Any]]], pad: int = 0
) -> None:
    """Write a file without the library, with any dtype names and any header length."""
    header, at = {}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    raw = json.dumps(header).encode() + b" " * pad
    body = b"".join(array.tobytes() for _, array in tensors.values())
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)
