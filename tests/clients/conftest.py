"""The local servers that the clients speak to, one of each kind for a file of tests."""

from collections.abc import Iterator

import pytest

from tests.support.serve import KEY, serve


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(tmp_path_factory.mktemp("server") / "log")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that wants a key."""
    yield from serve(tmp_path_factory.mktemp("guarded") / "log", GPT2_API_KEY=KEY)
