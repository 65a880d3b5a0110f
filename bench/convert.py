"""Converts the random model to the formats of the peers: once, in a separate process.

python bench/convert.py ctranslate2|gguf|onnx SOURCE TARGET [PRECISION]
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measure import MODELS, ROOT


def convert(kind: str, source: Path, precision: str = "") -> Path | None:
    """The model in a peer's format, or None if the peer is not installed or does not support it."""
    size = source.name.removesuffix("-published")
    target = MODELS / "-".join(filter(None, (size, kind, precision)))
    done = target / "done"
    if not done.exists():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        command = [sys.executable, __file__, kind, str(source), str(target), precision]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if ran.returncode:
            reason = ran.stderr.strip().splitlines()[-1:]
            print(f"{kind} {precision} is skipped: {' '.join(reason)}", flush=True)
            return None
        shutil.copy(source / "tokenizer.json", target)
        done.touch()
    return target


def to_ctranslate2(source: str, target: Path, precision: str) -> None:
    """Convert to `float32` or `int8`."""
    import ctranslate2

    converter = ctranslate2.converters.TransformersConverter(source)
    converter.convert(str(target), quantization=precision, force=True)


def to_gguf(source: str, target: Path, precision: str) -> None:
    """Convert to `F32`, `BF16` or `Q8_0`, with the tensor names of llama.cpp's `gguf-py`.

    As in llama.cpp's own conversion, biases, norms and positions stay float32.
    """
    import gguf
    import llama_cpp  # noqa: F401 (needed to run the model)
    import numpy as np
    from safetensors import safe_open

    config = json.loads(Path(source, "config.json").read_text())
    writer = gguf.GGUFWriter(str(target / "model.gguf"), "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    vocabulary = json.loads(Path(source, "tokenizer.json").read_text())
    tokens = sorted(vocabulary["model"]["vocab"].items(), key=lambda item: item[1])
    merges = vocabulary["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    kind = gguf.GGMLQuantizationType[precision]
    names = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
    parts = {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }
    for i in range(config["n_layer"]):
        names |= {f"h.{i}.{ours}": f"blk.{i}.{theirs}" for ours, theirs in parts.items()}
    weights = safe_open(f"{source}/model.safetensors", "numpy")
    for name in weights.keys():  # noqa: SIM118 (not a mapping)
        stem, _, suffix = name.rpartition(".")
        if stem not in names:
            continue  # masks
        tensor = weights.get_tensor(name)
        if tensor.ndim == 2 and stem.startswith("h."):
            tensor = tensor.T  # GGUF has [out, in]
        data = np.ascontiguousarray(tensor, np.float32)
        if data.ndim == 2 and stem != "wpe":
            data = gguf.quants.quantize(data, kind)
            writer.add_tensor(f"{names[stem]}.{suffix}", data, raw_dtype=kind)
        else:
            writer.add_tensor(f"{names[stem]}.{suffix}", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def to_onnx(source: str, target: Path, _precision: str) -> None:
    """Export ids [n_seq], past [2, layers, heads, n_past, head_dim] -> token, present."""
    import onnxruntime  # noqa: F401 (needed to run the model)
    import torch
    from transformers import DynamicCache, GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(source, dtype=torch.float32, local_files_only=True)

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.eval()

        def forward(self, ids, past):  # type: ignore[no-untyped-def]
            cache = DynamicCache([(k[None], v[None]) for k, v in zip(*past, strict=True)])
            out = self.model(ids[None], past_key_values=cache, logits_to_keep=1)
            layers = out.past_key_values.layers
            keys = torch.cat([layer.keys for layer in layers])
            values = torch.cat([layer.values for layer in layers])
            return out.logits[0, -1].argmax()[None], torch.stack([keys, values])

    config = model.config
    shape = (2, config.n_layer, config.n_head, 5, config.n_embd // config.n_head)
    torch.onnx.export(
        Step(),
        (torch.tensor([1, 2, 3]), torch.zeros(shape)),
        str(target / "model.onnx"),
        input_names=["ids", "past"],
        output_names=["token", "present"],
        dynamic_shapes={"ids": {0: "n_seq"}, "past": {3: "n_past"}},
        dynamo=True,
        external_data=True,
    )


if __name__ == "__main__":
    converters = {"ctranslate2": to_ctranslate2, "gguf": to_gguf, "onnx": to_onnx}
    converters[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), sys.argv[4])
