"""The reference implementation: `transformers` with torch in float32.

Imported by `test_reference.py` and `scripts/make_fixtures.py`, if it is installed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARGIN = 1e-3  # if the two highest logits differ by less, rounding may decide between them


def open_reference(model_dir: Path) -> Any:
    import torch
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(
        model_dir, dtype=torch.float32, local_files_only=True
    ).eval()


def logits(model: Any, ids: Sequence[int]) -> NDArray[np.float32]:
    """float32 [n_tokens, vocab_size]."""
    import torch

    with torch.no_grad():
        found: NDArray[np.float32] = model(torch.tensor([list(ids)])).logits[0].numpy()
    return found


def continuation(model: Any, ids: Sequence[int], max_new_tokens: int) -> list[int]:
    """The greedy ids of `generate`, cut before the first that rounding may decide."""
    import torch

    room = model.config.n_positions - len(ids)
    out = model.generate(
        torch.tensor([list(ids)]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=min(max_new_tokens, room),
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new_ids: list[int] = out.sequences[0, len(ids) :].tolist()
    for i, step in enumerate(out.logits):
        best, second = step[0].topk(2).values.tolist()
        if best - second < MARGIN:
            return new_ids[:i]
    return new_ids


def greedy(model: Any, ids: Sequence[int], max_new_tokens: int) -> tuple[list[int], bool]:
    """The greedy ids of `generate` up to the end-of-text token, and whether they are complete.

    They are cut before the first that rounding may decide.
    """
    import torch

    out = model.generate(
        torch.tensor([list(ids)]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=min(max_new_tokens, model.config.n_positions - len(ids)),
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new_ids: list[int] = out.sequences[0, len(ids) :].tolist()
    for i, step in enumerate(out.logits):
        best, second = step[0].topk(2).values.tolist()
        if best - second < MARGIN:
            return new_ids[:i], False
    ends = model.generation_config.eos_token_id
    if new_ids[-1] in (ends if isinstance(ends, list) else [ends]):
        del new_ids[-1]
    return new_ids, True
