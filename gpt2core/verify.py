"""Compares a model with published results of GPT-2.

`published.json` contains greedy continuations, log probabilities, logits and SHA-256 digests of
tensors, each with its source and license. The network's shape selects the records, so a fine-tune
of GPT-2 is compared with GPT-2 itself, and differs.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from gpt2core.engine import Engine
from gpt2core.errors import InvalidArgument, TokenizerError
from gpt2core.files.directory import open_directory
from gpt2core.tokenizer import Tokenizer

Published = Mapping[str, Any]
# If the two highest logits differ by less, the order of summation may decide between them.
TIE = 1e-3


class Check(NamedTuple):
    """The result of one comparison. `agrees` is None if it was not possible."""

    agrees: bool | None
    detail: str


def read_published() -> Published:
    """The records of `published.json`."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "published.json")
    with open(path, encoding="utf-8") as file:
        published: Published = json.load(file)
    return published


def published_name(engine: Engine, published: Published) -> str | None:
    """The name of the published model with the same shape, or None."""
    config = engine.config
    shape = [config.n_layer, config.n_embd, config.n_head, config.vocab_size]
    return next((name for name, known in published["shapes"].items() if known == shape), None)


def verify(engine: Engine, name: str, published: Published) -> Iterator[Check]:
    """Compare `engine` with each record of the published model `name`.

    Raises:
        CheckpointError: a logit is NaN.
    """
    for digests in _records(published, "digests", name):
        yield _check_tensors(engine, digests["tensors"])
    tokenizer = _tokenizer(engine)
    outputs = _records(published, "outputs", name)
    prompts = [record for record in outputs if "prompt_sha256" in record]
    if prompts and tokenizer:
        check = _check_prompts(tokenizer, prompts)
        yield check
        if not check.agrees:  # texts cannot be compared with a different tokenizer
            tokenizer = None
    elif prompts:
        yield Check(None, "tokenizer: the directory does not have a usable one")
    for record in outputs:
        yield _check_output(engine, record, tokenizer)
    for record in _records(published, "numbers", name):
        yield _check_numbers(engine, record)


def count_checks(name: str, published: Published) -> int:
    """The number of checks that `verify` yields."""
    outputs = _records(published, "outputs", name)
    others = _records(published, "digests", name) + _records(published, "numbers", name)
    return len(outputs) + len(others) + any("prompt_sha256" in record for record in outputs)


def _records(published: Published, kind: str, name: str) -> list[Published]:
    return [record for record in published[kind] if record["model"] == name]


def _tokenizer(engine: Engine) -> Tokenizer | None:
    try:
        return engine.tokenizer
    except TokenizerError:
        return None


def _check_tensors(engine: Engine, digests: Mapping[str, str]) -> Check:
    """Compare digests of float32 tensors [n_in, n_out], the layout of the published files."""
    _, tensors = open_directory(engine.model_dir, "auto")
    others = sorted({tensor.dtype for tensor in tensors.values()} - {"F32"})
    if others:
        return Check(None, f"SHA-256 of the tensors: the weights are {', '.join(others)}, not F32")
    wrong = [
        name
        for name, digest in digests.items()
        if sha256(np.ascontiguousarray(tensors[name].data).data).hexdigest() != digest
    ]
    if wrong:
        same = len(digests) - len(wrong)
        detail = f"SHA-256 of {same} of {len(digests)} tensors; the first that differs: {wrong[0]}"
        return Check(False, detail)
    return Check(True, f"SHA-256 of {len(digests)} of {len(digests)} tensors")


def _check_prompts(tokenizer: Tokenizer, records: Sequence[Published]) -> Check:
    """Check that the ids decode to the published prompts, and these encode to the ids."""
    for record in records:
        ids = record["prompt_ids"]
        text = _text(tokenizer, ids)
        if text is None or sha256(text.encode()).hexdigest() != record["prompt_sha256"]:
            what = "are not in the vocabulary" if text is None else f"decode to {text!r}"
            return Check(False, f"tokenizer: the ids {ids} {what}")
        if tokenizer.encode(text, allow_special=True) != ids:
            return Check(False, f"tokenizer: {text!r} encodes to different ids")
    return Check(True, f"tokenizer: the ids of {len(records)} prompts")


def _text(tokenizer: Tokenizer | None, ids: Sequence[int]) -> str | None:
    """The text of `ids`; None without a tokenizer, or if an id is not in its vocabulary."""
    try:
        return tokenizer.decode(ids) if tokenizer else None
    except InvalidArgument:
        return None


def _check_output(engine: Engine, record: Published, tokenizer: Tokenizer | None) -> Check:
    """Compare a greedy continuation, up to the first token that differs.

    If only the text was published, the same text in different tokens agrees, too.
    """
    prompt, expected = record["prompt_ids"], record["ids"]
    name = repr(_text(tokenizer, prompt) or prompt)
    options = record.get("options", {})
    if options and not tokenizer:
        return Check(None, f"{name} with {options}: requires the published tokenizer")
    if options:
        ids = engine.generate(prompt, len(expected), **options).ids
    else:
        ids = engine.generate_ids(prompt, len(expected))
    pairs = enumerate(zip(ids, expected, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(ids), len(expected)))
    detail = f"{same} of {len(expected)} tokens after {name}, {record['source']}"
    if same == len(expected):
        return Check(True, detail)
    if tokenizer and record.get("published_as_text"):
        text = (_text(tokenizer, expected) or "").rstrip()
        longer = engine.generate(prompt, len(expected) + 8, **options).text
        if text and longer.startswith(text):
            return Check(True, f"the text after {name}, {record['source']}")
    if same == len(ids):
        return Check(False, f"{detail}: the model stops there")
    last = engine.logits([*prompt, *expected[:same]])[-1]
    margin = float(last[ids[same]] - last[expected[same]])
    detail += f": then {ids[same]}, not {expected[same]}; their logits differ by {margin:.3g}"
    is_tie = not options and margin <= record.get("tie", TIE)
    return Check(is_tie, f"{detail}, a tie" if is_tie else detail)


def _check_numbers(engine: Engine, record: Published) -> Check:
    """Compare log probabilities, their sum, logits, or whether the continuation is greedy."""
    ids, source = record["ids"], record["source"]
    if "logits" in record:
        tokens, values = zip(*record["logits"], strict=True)
        return _compare("logits", engine.logits(ids)[-1][list(tokens)], values, record)
    scored = len(record["logprobs"]) if "logprobs" in record else record["scored"]
    logits = engine.logits(ids[:-1])[-scored:].astype(np.float64)
    targets = np.array(ids[-scored:])
    if "greedy" in record:
        greedy = bool((logits.argmax(-1) == targets).all())
        expected = "greedy" if record["greedy"] else "not greedy"
        detail = f"the last {scored} of {len(ids)} tokens are {expected}, {source}"
        return Check(greedy == record["greedy"], detail)
    logits -= logits.max(-1, keepdims=True)
    logprobs = logits[np.arange(scored), targets] - np.log(np.exp(logits).sum(-1))
    if "sum" in record:
        return _compare(
            f"log probability of {scored} tokens", [logprobs.sum()], [record["sum"]], record
        )
    return _compare("log probabilities", logprobs, record["logprobs"], record)


def _compare(what: str, ours: Any, published: Sequence[float], record: Published) -> Check:
    """Compare within `tolerance` (absolute) or `relative` (to each published value)."""
    expected = np.asarray(published, np.float64)
    error = np.abs(np.asarray(ours, np.float64) - expected)
    is_relative = "relative" in record
    if is_relative:
        error /= np.abs(expected)
    tolerance = record["relative"] if is_relative else record["tolerance"]
    largest = float(error.max())
    count = f"{len(expected)} " if len(expected) > 1 else ""
    kind = "relative error" if is_relative else "error"
    detail = f"{count}{what}: {kind} {largest:.2g}, tolerance {tolerance:g}, {record['source']}"
    return Check(largest <= tolerance, detail)
