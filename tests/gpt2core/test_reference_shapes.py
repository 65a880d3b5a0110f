"""Fine-tunes in published layouts, compared with `transformers`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2core import Engine
from gpt2core.pack import pack
from tests.support import reference

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore"),  # warnings of torch and transformers
]

TEXTS = (
    "hello in the hello",
    " the  wolf\n\nwolfish <tab> x",
    "<user>Hello<bot><|im_start|> the<|im_end|>  x<|endoftext|>",
    "<s></s><pad><unk><mask><sep><stale>",
    "É \U0001f44b 12",
)


def shapes() -> list[Any]:
    try:
        from tests.support.published_shapes import SHAPES
    except ImportError:  # the module needs transformers
        return []
    return [pytest.param(shape, id=shape.name) for shape in SHAPES]


@pytest.mark.parametrize("shape", shapes())
def test_a_published_shape_gives_the_same_ids_logits_and_tokens(tmp_path: Path, shape: Any) -> None:
    import torch
    from transformers import AutoTokenizer

    from tests.support.published_shapes import write_shape

    folder = write_shape(shape, tmp_path / "raw")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = reference.open_reference(folder)
    engines = [Engine.open(folder)]
    exact = ("f32", "bf16") if shape.dtype is torch.bfloat16 else ("f32",)
    for precision in exact:
        pack(folder, tmp_path / precision, precision)
        engines.append(Engine.open(tmp_path / precision))
    compared = 0
    for text in TEXTS:
        for allow in (True, False):
            ids = tokenizer(text, split_special_tokens=not allow)["input_ids"]
            for engine in engines:
                assert engine.encode_prompt(text, allow_special=allow) == ids, text
        expected = reference.logits(model, ids)
        tokens, is_all = reference.greedy(model, ids, 30)
        for engine in engines:
            np.testing.assert_allclose(engine.logits(ids), expected, rtol=0, atol=1e-4)
            new_ids = engine.generate_ids(ids, 30)
            assert new_ids[: len(tokens)] == tokens
            assert not is_all or len(new_ids) == len(tokens)
        readable = [token for token in tokens if token < len(tokenizer)]
        for engine in engines:
            for skip in (True, False):
                theirs = tokenizer.decode(readable, skip_special_tokens=skip)
                assert engine.tokenizer.decode(readable, skip_special=skip) == theirs
        compared += len(tokens)
    assert compared >= 5
