"""Events and replies as JSON, byte for byte as AWS's runtime client reads and writes them."""

import json
import os

from gpt2core.startup.slim_typing import Any

# Where awslambdaric does not escape non-ASCII characters (its lambda_runtime_marshaller).
_PLAIN_TEXT = ("AWS_Lambda_python3.12", "AWS_Lambda_python3.13", "AWS_Lambda_python3.14",
               "AWS_Lambda_python3.15")  # fmt: skip


class InvalidEvent(Exception):
    """An event or a header of its invocation is not JSON."""


class InvalidReply(Exception):
    """A reply cannot be written as JSON."""


def decoded(body: bytes) -> Any:
    """Parse an event.

    Raises:
        InvalidEvent: it is not JSON.
    """
    try:
        return json.loads(body, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"Unable to unmarshal input: {error}") from None


def encoded(reply: Any) -> tuple[bytes, str]:
    """Serialize a reply; returns its bytes and their content type.

    Raises:
        InvalidReply: it cannot be written as JSON.
    """
    if isinstance(reply, bytes):
        return reply, "application/unknown"
    escape = os.environ.get("AWS_EXECUTION_ENV") not in _PLAIN_TEXT
    numbers: dict[str, str] = {}

    def plain(value: Any) -> str:
        """Convert other types as awslambdaric does: decimals to numbers, bytes to strings."""
        if isinstance(value, bytes):
            return value.decode()
        if type(value).__module__ != "decimal" or not hasattr(value, "is_nan"):
            kind = type(value).__name__
            raise TypeError(f"Object of type {kind} is not JSON serializable")
        # `json` cannot write a number with given digits: write a mark and replace it below.
        mark = os.urandom(16).hex()
        numbers[mark] = "NaN" if value.is_nan() else str(value)
        return mark

    try:
        text = json.dumps(reply, ensure_ascii=escape, default=plain)
        if numbers:
            import re

            text = re.sub(r'"([0-9a-f]{32})"', lambda m: numbers.get(m[1], m[0]), text)
        return text.encode(), "application/json"
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidReply(f"Unable to marshal response: {error}") from None


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
