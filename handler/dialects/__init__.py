"""Dialects: API formats, that is, formats of requests and replies. One module for each.

To add a dialect, write a module here with a `DIALECT`, an instance of a subclass of
`request.Dialect`, and add its name to `NAMES`. The first dialect that recognizes the fields of a
request parses it.
"""

from collections.abc import Iterator, Mapping

from gpt2core.startup.slim_typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handler.dialects.request import Dialect, Request

NAMES = ("native", "huggingface", "openai", "openai_chat")


def dialects() -> "Iterator[Dialect]":
    """All dialects, each imported when the iterator reaches it."""
    for name in NAMES:
        # Like `import_module`, without importing importlib at a cold start.
        yield __import__(f"handler.dialects.{name}", fromlist=["DIALECT"]).DIALECT


def dialect_at(path: str) -> "Dialect | None":
    """The first dialect that serves `path`. It renders errors until the fields are known."""
    return next((dialect for dialect in dialects() if route_of(dialect, path)), None)


def route_of(dialect: "Dialect", path: str) -> str | None:
    """The route of a dialect that matches `path`."""
    if path in dialect.routes:
        return path
    below = (r for r in dialect.routes if len(r) > 1 and r.endswith("/") and path.startswith(r))
    return next(below, None)


def dialect_of(fields: Mapping[str, Any], path: str | None = None) -> "Dialect | None":
    """The dialect that recognizes the fields, among those that serve `path` if it is given."""
    return next(
        (
            dialect
            for dialect in dialects()
            if (path is None or path in dialect.routes) and dialect.recognizes(fields)
        ),
        None,
    )


def parse_request(fields: Mapping[str, Any]) -> "Request":
    """Parse a request without a path, in a dialect that its fields identify.

    Raises:
        BadRequest, LimitExceeded: see `Dialect.parse`.
    """
    return (dialect_of(fields) or next(dialects())).parse(fields)
