"""The parts of batches: requests with ids, queue messages, S3 objects; and the result lines.

The bytes of a result depend only on its request, so processing a request twice is harmless.
"""

import json
from collections.abc import Mapping, Sequence

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any, NamedTuple
from handler.dialects import parse_request
from handler.dialects.native import error_of, text_of
from handler.dialects.request import EXAMPLE, Request, check_id, parse_json, short_repr
from handler.errors import BadRequest

if TYPE_CHECKING:
    from handler.completions import Completion

_IDS = ("id", "custom_id")


class S3Object(NamedTuple):
    """A file of prompts named in an event."""

    bucket: str
    key: str
    etag: str | None = None
    version: str | None = None


class Item(NamedTuple):
    """One request of a batch: a line of a file, a message or a map item. The caller sets `id`."""

    id: Any
    request: Request | GPT2Error


class Record(NamedTuple):
    """A message of a queue."""

    id: str
    content: Item | tuple[S3Object | GPT2Error, ...] | GPT2Error
    name: Any = None
    """The id that the sender gave to an invalid message."""
    group: str = ""
    """The message group of a FIFO queue; messages of a group are processed in order."""


def parse_item(fields: Any, defaults: Mapping[str, Any] | None = None) -> Item:
    """Parse one request in a dialect that its fields identify; it may have `id` or `custom_id`."""
    name = None
    try:
        if not isinstance(fields, dict):
            raise BadRequest(f"the request is {short_repr(fields)}, not an object: send {EXAMPLE}")
        given = [fields[key] for key in _IDS if fields.get(key) is not None]
        if len(given) > 1:
            raise BadRequest("send either id or custom_id, not both", param="custom_id")
        for value in given:
            check_id(value)
            name = value
        wanted = {**(defaults or {}), **fields}
        request = parse_request({k: v for k, v in wanted.items() if k not in _IDS})
        if request.stream:
            raise BadRequest(
                "the results of batches are not streamed: set stream to false", param="stream"
            )
    except GPT2Error as error:
        return Item(name, error)
    return Item(name, request._replace(has_id=name is not None, id=name))


def parse_json_item(text: str) -> Item:
    """Parse one request in JSON."""
    try:
        return parse_item(parse_json(text, "the request"))
    except GPT2Error as error:
        return Item(None, error)


def result_of(
    item: Item, done: "Sequence[Completion] | GPT2Error", number: int | None = None
) -> dict[str, Any]:
    """One result of a batch: the request's id, its line number, and its text or error."""
    result = {"id": item.id} | ({} if number is None else {"line": number})
    if isinstance(done, GPT2Error):
        return result | error_of(done)
    assert isinstance(item.request, Request)
    return result | text_of(item.request, done)


def result_line(
    item: Item, done: "Sequence[Completion] | GPT2Error", number: int | None = None
) -> bytes:
    """`result_of` as a JSON line."""
    return (json.dumps(result_of(item, done, number), ensure_ascii=False) + "\n").encode()
