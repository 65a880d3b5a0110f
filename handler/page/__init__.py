"""The page at `GET /`: one file, whose requests go to this function alone.

Source of the policy's hashes: W3C Content Security Policy Level 3, "Does element match source list
for type and source?".
"""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from handler.jobs import Document


def page() -> Document:
    """The page, and headers that allow its own script and style and nothing else."""
    text = Path(__file__).with_name("index.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_digest('script', text)};"
        f" style-src {_digest('style', text)}; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Document(text, headers)


def _digest(tag: str, text: str) -> str:
    """The source expression of the one element called `tag`."""
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
