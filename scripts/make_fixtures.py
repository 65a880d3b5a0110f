"""Write tests/fixtures/reference.npz: the outputs of `transformers` for the test models.

    python -m scripts.make_fixtures          (in the reference environment, from the root)

For each case: the logits of a prompt of 24 tokens, and the greedy continuation of a prompt of 4
tokens to the end of the context, cut before the first token whose two highest logits differ by less
than 1e-3.
"""

import tempfile
from pathlib import Path

import numpy as np

from tests.support.models import write_model
from tests.support.reference import continuation, logits, open_reference
from tests.support.reference_cases import CASES, prompt_ids, without_end

OUT = Path(__file__).parent.parent / "tests" / "fixtures" / "reference.npz"


def main() -> None:
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            path = write_model(
                Path(folder) / case.name, without_end(case.config), seed=case.seed, tokenizer=False
            )
            model = open_reference(path)
            arrays[f"{case.name}.logits"] = logits(model, prompt_ids(case, 24))
            ids = continuation(model, prompt_ids(case, 4), 200)
            arrays[f"{case.name}.greedy"] = np.array(ids, np.int32)
            print(f"{case.name}: {len(ids)} greedy ids")
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, **arrays)


if __name__ == "__main__":
    main()
