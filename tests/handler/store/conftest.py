"""A model in S3 and downloads in many small parts."""

from pathlib import Path

import pytest

from handler.store import s3, transfer
from tests.support.s3_server import Bucket


@pytest.fixture
def small_parts_and_short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts per file, and no pauses between retries."""
    monkeypatch.setattr(s3, "PART_BYTES", 10_000)
    monkeypatch.setattr(transfer, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def uri(bucket: Bucket, model_dir: Path) -> str:
    return bucket.upload(model_dir, "models/gpt2")
