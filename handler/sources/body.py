"""Parses the body of an HTTP request to its fields. Pure functions.

Sources: RFC 9110 (8.3 Content-Type, 8.4 Content-Encoding), RFC 1950 and 1952 (zlib, gzip), the URL
Standard's application/x-www-form-urlencoded.
"""

import binascii

from gpt2core.startup.slim_typing import Any
from handler.dialects.request import EXAMPLE, parse_json, short_repr
from handler.errors import (
    BadRequest,
    BodyTooLarge,
    UnsupportedContentEncoding,
    UnsupportedContentType,
)
from handler.sources.source import MAX_PAYLOAD_BYTES

MAX_CODINGS = 3
CODINGS = ("gzip", "deflate")
_GZIP_MAGIC = b"\x1f\x8b"


def text_of(body: Any, is_base64: bool, encodings: str) -> str:
    """The body as text, decoded and decompressed.

    Lambda passes a text body as a string and any other body in base64. `encodings` is the value of
    Content-Encoding.

    Raises:
        BadRequest, BodyTooLarge, UnsupportedContentEncoding: it cannot be decoded.
    """
    if body is None or body == "":
        raise BadRequest(f"the body is empty: send {EXAMPLE}", param="body")
    if not isinstance(body, str):
        raise BadRequest(f"the event's body is {short_repr(body)}, not a string", param="body")
    if len(body) > MAX_PAYLOAD_BYTES * 4 // 3 + 4:
        raise _too_large(len(body))
    if not is_base64:
        if body.startswith("\x1f") and encodings:
            raise UnsupportedContentEncoding(
                "the compressed body was passed as text, which damaged it: send it uncompressed, or"
                " add its content type to the API's binary media types"
            )
        return body.removeprefix("\ufeff")
    try:
        raw = binascii.a2b_base64(body, strict_mode=True)  # `base64` takes 1 ms to import
    except (binascii.Error, ValueError) as error:
        raise BadRequest(
            "isBase64Encoded is true but the body is not valid base64", param="body"
        ) from error
    if len(raw) > MAX_PAYLOAD_BYTES:
        raise _too_large(len(raw))
    if encodings:
        raw = _unzipped(raw, encodings)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = ": send the header Content-Encoding: gzip" if raw.startswith(_GZIP_MAGIC) else ""
        raise BadRequest(
            f"byte {error.start} of the body is not UTF-8{hint}", param="body"
        ) from None


def is_form(content_type: str, text: str) -> bool:
    """Whether the body is a form, not JSON. Without a content type it is JSON.

    Duplicate headers arrive joined by commas: the last one counts (Fetch Standard, "extract a MIME
    type").

    Raises:
        UnsupportedContentType: the body is neither, or not in UTF-8.
    """
    if "," in content_type:
        import re

        values = re.findall(r'(?:"(?:[^"\\]|\\.)*"|[^,"])+', content_type)
        content_type = next((v for v in reversed(values) if v.strip()), "")
    kind, _, parameters = content_type.lower().partition(";")
    kind = kind.strip()
    charset = parameters.partition("charset=")[2].strip(' "') or "utf-8"
    if charset.split(";")[0].strip(' "') not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedContentType(f"charset {short_repr(charset)} is not supported: send UTF-8")
    if kind in ("", "application/json", "text/json") or kind.endswith("+json"):
        return False
    if kind != "application/x-www-form-urlencoded":
        raise UnsupportedContentType(
            f"content type {short_repr(kind)} is not supported: send application/json or a form"
        )
    # `curl -d '{…}'` sends JSON with the content type of a form.
    return not text.lstrip().startswith(("{", "[", '"'))


def json_fields(text: str) -> dict[str, Any]:
    """The fields of a JSON body.

    Raises:
        BadRequest: it is not a JSON object.
    """
    fields = parse_json(text, "the body", "body")
    if not isinstance(fields, dict):
        raise BadRequest(
            f"the body is {short_repr(fields)}, not an object: send {EXAMPLE}", param="body"
        )
    return fields


def form_fields(text: str) -> dict[str, list[str]]:
    """The fields of a form, each with a list of its values.

    Raises:
        BadRequest: the body is not a form.
    """
    from urllib.parse import parse_qs  # 3 ms, and only for forms

    try:
        return parse_qs(
            text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=200
        )
    except ValueError:
        raise BadRequest(
            f"the body is not a form: send prompt=… or {EXAMPLE}", param="body"
        ) from None


def _unzipped(raw: bytes, encodings: str) -> bytes:
    """Decompress the body, in the reverse order of its content codings.

    A gateway may have decompressed it and kept the header: a body without the magic number of the
    coding is left unchanged.
    """
    names = [name.strip().lower() for name in encodings.split(",") if name.strip()]
    if len(names) > MAX_CODINGS:
        raise UnsupportedContentEncoding(
            f"the body has {len(names)} content codings, more than {MAX_CODINGS}"
        )
    for name in reversed(names):
        if name in ("gzip", "x-gzip"):
            raw = _inflated(raw, name, 31) if raw.startswith(_GZIP_MAGIC) else raw
        elif name == "deflate":
            is_zlib = len(raw) > 1 and raw[0] & 15 == 8 and (raw[0] << 8 | raw[1]) % 31 == 0
            raw = _inflated(raw, name, 15) if is_zlib else raw
        elif name != "identity":
            raise UnsupportedContentEncoding(
                f"content coding {short_repr(name)} is not supported: use"
                f" {' or '.join(CODINGS)}, or send the body uncompressed"
            )
    return raw


def _inflated(raw: bytes, name: str, window_bits: int) -> bytes:
    """Decompress one zlib stream or several gzip members (RFC 1952, 2.2), up to the size limit."""
    import zlib

    found = b""
    while True:
        stream = zlib.decompressobj(window_bits)
        try:
            found += stream.decompress(raw, MAX_PAYLOAD_BYTES + 1 - len(found))
        except zlib.error:
            raise BadRequest(
                f"Content-Encoding is {name} but the body is not valid {name}", param="body"
            ) from None
        if len(found) > MAX_PAYLOAD_BYTES:
            raise _too_large()
        if not stream.eof:
            raise BadRequest(f"Content-Encoding is {name} but the body is truncated", param="body")
        raw = stream.unused_data
        if not (window_bits == 31 and raw.startswith(_GZIP_MAGIC)):
            return found


def _too_large(size: int | None = None) -> BodyTooLarge:
    has = f"has {size} bytes" if size else "decompresses to more bytes than allowed"
    return BodyTooLarge(f"the body {has}; the limit is {MAX_PAYLOAD_BYTES}", param="body")
