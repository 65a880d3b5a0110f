"""`lm-eval` scores texts through `serve` with `echo` and `logprobs` of OpenAI's completions."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2core import Engine, Tokenizer
from tests.conftest import DEMO
from tests.support.serve import serve

pytestmark = pytest.mark.clients

TEXTS = (
    "Once upon a time there was a king who had a daughter, and she was very beautiful.",
    "The old woman said: 'I have a good heart, and I will give you what you ask for.'",
    "The wolf café – naïve! <|endoftext|> 1234",
)
# Task files are YAML, of which JSON is a subset.
TASK = {
    "task": "tales",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}],
}


def losses(engine: Engine, tokenizer: Tokenizer, text: str) -> list[float]:
    """The negative log-likelihoods of the tokens of a text after the end-of-text token."""
    ids = [engine.config.bos_token_id, *tokenizer.encode(text, allow_special=True)]
    logits = engine.logits(ids[:-1]).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    of_targets = logits[np.arange(len(logits)), ids[1:]]
    return list(np.log(np.exp(logits).sum(axis=-1)) - of_targets)


def test_the_perplexity_matches_the_engines_logits(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    files = {"data_files": {"test": str(tmp_path / "texts.jsonl")}}
    (tmp_path / "tales.yaml").write_text(json.dumps(TASK | {"dataset_kwargs": files}))
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    environ = os.environ | offline | {"HF_HOME": str(tmp_path / "home"), "TQDM_DISABLE": "1"}
    for address in serve(tmp_path / "log"):
        model = f"model=demo,base_url={address}/v1/completions,tokenizer={DEMO},max_length=512"
        subprocess.run(
            [sys.executable, "-m", "lm_eval", "--model", "local-completions",
             "--model_args", model, "--tasks", "tales", "--include_path", tmp_path,
             "--output_path", tmp_path / "out"],
            env=environ, check=True, timeout=110,
        )  # fmt: skip
    (found,) = (tmp_path / "out").rglob("results_*.json")
    per_word = json.loads(found.read_text())["results"]["tales"]["word_perplexity,none"]

    engine, tokenizer = Engine.open(DEMO), Tokenizer.open(DEMO)
    expected = [loss for text in TEXTS for loss in losses(engine, tokenizer, text)]
    words = sum(len(text.split()) for text in TEXTS)
    per_token = math.exp(math.log(per_word) * words / len(expected))
    assert per_token == pytest.approx(math.exp(np.mean(expected)), abs=1e-3)
