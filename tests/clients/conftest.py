"""Local servers for the clients, with and without a key."""

from collections.abc import Iterator

import pytest

from tests.support.serve import KEY, serve


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(tmp_path_factory.mktemp("server") / "log")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that requires a key."""
    yield from serve(tmp_path_factory.mktemp("guarded") / "log", GPT2_API_KEY=KEY)
