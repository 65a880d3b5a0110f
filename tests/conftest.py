"""Shared fixtures: directories, models and servers."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from gpt2core import Engine
from tests.support.models import write_model
from tests.support.proxy import FaultProxy
from tests.support.s3_server import CREDENTIALS, Bucket, moto_server

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "models" / "demo"
IMAGE = "gpt2-lambda-test"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes long; `make test-slow` runs it")
    config.addinivalue_line("markers", "image: needs Docker; `make image-test` runs it")
    config.addinivalue_line(
        "markers", "arm64: needs Docker, and QEMU elsewhere; `make image-arm64-test` runs it"
    )
    config.addinivalue_line("markers", "clients: needs clients; `make test-clients` runs it")
    config.addinivalue_line("markers", "reference: needs torch; `make test-reference` runs it")
    from hypothesis import settings

    settings.register_profile("quick", deadline=None, derandomize=True, max_examples=100)
    settings.load_profile("quick")


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files of a clean clone."""
    from tests.support.containers import checkout

    return checkout(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="session")
def image(clone: Path) -> Iterator[str]:
    """The name of the image, built from a clean clone."""
    from tests.support.containers import build

    try:
        build(IMAGE, clone)
        yield IMAGE
    finally:
        subprocess.run(["docker", "rmi", "-f", IMAGE], capture_output=True, check=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory with published vocabularies and outputs, which is not part of the project."""
    path = Path(os.environ.get("GPT2_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no test data at {path}: set GPT2_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def demo() -> Engine:
    return Engine.open(DEMO)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with a byte tokenizer. Read-only."""
    return write_model(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="session")
def engine(model_dir: Path) -> Engine:
    return Engine.open(model_dir)


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """`host:port` of moto's server."""
    with moto_server() as address:
        yield address


@pytest.fixture
def aws_settings(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure AWS clients in this process to use moto."""
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://{moto}"}).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(moto: str) -> Bucket:
    """A new bucket."""
    return Bucket(moto, f"test-{uuid4().hex}")


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy to S3 that AWS clients use."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with FaultProxy(moto) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", between.url)
        yield between
