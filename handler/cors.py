"""Headers that let pages of other origins use the function; imported if GPT2_CORS_ORIGINS is set.

Source: Fetch Standard, "CORS protocol". No cookies: a page sends the key as a header.
"""

# `*` covers every header but Authorization.
_REQUEST_HEADERS = "Authorization, *"
_REPLY_HEADERS = "Retry-After, Server-Timing, WWW-Authenticate, x-cold-start, x-request-id"
MAX_AGE_S = 7200  # Chromium keeps an answer no longer


def headers_of(origin: str, allowed: tuple[str, ...]) -> dict[str, str]:
    """Headers of every reply to a request with this `Origin` header, or "" without one."""
    if "*" in allowed:
        return {
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Expose-Headers": _REPLY_HEADERS,
        }
    headers = {"Vary": "Origin"}  # for every origin, so that a cache keeps their replies apart
    if origin in allowed:
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = _REPLY_HEADERS
    return headers


def preflight(methods: tuple[str, ...]) -> dict[str, str]:
    """More headers of the reply to a preflight request, for a route with these methods."""
    return {
        "Content-Type": "text/plain; charset=utf-8",
        "Access-Control-Allow-Methods": ", ".join(methods),
        "Access-Control-Allow-Headers": _REQUEST_HEADERS,
        "Access-Control-Max-Age": str(MAX_AGE_S),
    }
