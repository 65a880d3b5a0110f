"""Places and models that several test files share."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gpt2core import Engine
from tests.models import write_model

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "models" / "demo"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes long; `make test-slow` runs it")
    config.addinivalue_line("markers", "reference: needs torch; `make test-reference` runs it")
    from hypothesis import settings

    settings.register_profile("quick", deadline=None, derandomize=True, max_examples=100)
    settings.load_profile("quick")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Published vocabularies and outputs, which are not part of the project."""
    path = Path(os.environ.get("GPT2_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no test data at {path}: set GPT2_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def demo() -> Engine:
    return Engine.open(DEMO)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with a tokenizer of single bytes. Read-only."""
    return write_model(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="session")
def engine(model_dir: Path) -> Engine:
    return Engine.open(model_dir)


def load_event(name: str) -> Any:
    """One of the events that users invoke, `events/NAME.json`."""
    return json.loads((ROOT / "events" / f"{name}.json").read_text())
