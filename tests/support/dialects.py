"""A valid request in each dialect, so that tests include new dialects."""

from typing import Any

from handler.dialects import dialects
from handler.dialects.request import Dialect

SUPPORTED = [dialect for dialect in dialects() if dialect.is_supported]


def name_of(dialect: Dialect) -> str:
    """The name of a dialect in the ids of tests."""
    return type(dialect).__name__


def paths_of(dialect: Dialect) -> list[str]:
    """Its paths for POST."""
    return [path for path, methods in dialect.routes.items() if "POST" in methods]


def path_of(dialect: Dialect) -> str:
    """The last of its paths for POST, which is not `/` if it has another."""
    return paths_of(dialect)[-1]


def request_of(dialect: Dialect, prompt: str, max_new_tokens: int, **other: Any) -> dict[str, Any]:
    """The fields of a request; `other` are fields without a path."""
    fields: dict[str, Any] = dict(other)
    for name, value in (("prompt", prompt), ("max_new_tokens", max_new_tokens)):
        *path, last = dialect.param(name).split(".")
        inner = fields
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return fields
