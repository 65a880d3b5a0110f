"""The state machine of the batch template, with its substitutions."""

from typing import Any

import yaml

from tests.conftest import ROOT

SETTINGS = {
    "Partition": "aws",
    "FunctionArn": "arn:aws:lambda:eu-central-1:123456789012:function:gpt2:live",
    "ResultsBucket": "results",
    "MaximumConcurrency": "10",
    "ItemsPerBatch": "64",
    "Attempts": "3",
    "ToleratedFailurePercentage": "0",
}


def state_machine() -> dict[str, Any]:
    """The definition of the state machine."""
    text = (ROOT / "templates" / "batches.asl.yaml").read_text()
    for name, value in SETTINGS.items():
        assert f"${{{name}}}" in text
        text = text.replace(f"${{{name}}}", value)
    assert "${" not in text
    filled = yaml.safe_load(text)
    assert isinstance(filled, dict)
    return filled
