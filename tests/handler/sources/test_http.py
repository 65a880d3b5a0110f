"""Parsing of HTTP requests from API Gateway, Function URLs and load balancers."""

import gzip
import zlib
from typing import Any

import pytest

from handler.dialects.huggingface import DIALECT as HUGGING_FACE
from handler.dialects.native import DIALECT as NATIVE
from handler.dialects.request import Dialect, Request
from handler.errors import (
    BadRequest,
    BodyTooLarge,
    MethodNotAllowed,
    RouteNotFound,
    UnsupportedContentEncoding,
    UnsupportedContentType,
)
from handler.jobs import Generate, Health, Job
from handler.settings import Settings
from handler.sources import source_of
from handler.sources.http import HttpResponse
from tests.support.dialects import SUPPORTED, name_of, path_of
from tests.support.events import http_event, load_event

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
HTTP = ["url", "api", "rest", "alb"]
NOT_DECODED = ["url", "rest", "alb"]


def job_of(event: Any, **settings: Any) -> Job:
    return source_of(event).parse(Settings(**settings))


def request(event: Any, **settings: Any) -> Request:
    job = job_of(event, **settings)
    assert isinstance(job, Generate)
    return job.request


def typed(body: Any, content_type: str | None = JSON, **headers: str) -> dict[str, Any]:
    """A request with only these headers."""
    kind = {} if content_type is None else {"Content-TYPE": content_type}
    return http_event(body, headers=kind | {k.replace("_", "-"): v for k, v in headers.items()})


def test_multi_value_headers_work_in_requests_and_replies() -> None:
    for name, multi in (("alb-generate-multi-value", True), ("alb-generate", False)):
        source: Any = source_of(load_event(name))
        reply = source.wrap(HttpResponse(200, {"a": "b"}, "text"))
        assert reply.get("multiValueHeaders" if multi else "headers") == (
            {"a": ["b"]} if multi else {"a": "b"}
        )
        assert ("headers" in reply) != multi


def test_a_chunked_response_is_buffered_if_the_source_does_not_stream() -> None:
    source: Any = source_of(load_event("url-generate"))
    response = HttpResponse(200, {}, "data: 1", iter([" data: 2", " end"]))
    assert source.wrap(response)["body"] == "data: 1 data: 2 end"


@pytest.mark.parametrize(
    "name",
    [
        "api-generate",
        "api-generate-stage",
        "api-generate-no-content-type",
        "api-generate-form-json",
        "rest-generate",
        "url-generate",
        "alb-generate",
        "alb-generate-multi-value",
        "alb-generate-no-content-type",
        "direct-generate",
    ],
)
def test_every_source_parses_to_the_same_request(name: str) -> None:
    assert request(load_event(name)) == Request(
        NATIVE,
        ("Once upon a time there was a fox who",),
        max_new_tokens=40,
        stop=("\n",),
        return_full_text=True,
    )


@pytest.mark.parametrize(
    "name",
    [
        "api-huggingface",
        "rest-huggingface",
        "url-huggingface",
        "alb-huggingface",
        "direct-huggingface",
    ],
)
def test_every_source_parses_the_hugging_face_dialect(name: str) -> None:
    assert request(load_event(name)) == Request(
        HUGGING_FACE,
        ("The princess went into the forest and",),
        max_new_tokens=24,
        stop=(".",),
        return_full_text=True,
        details=True,
    )


def test_form_fields_are_typed() -> None:
    assert request(load_event("api-generate-form-fields")) == Request(
        NATIVE,
        ("The old woman said",),
        max_new_tokens=16,
        stop=(".",),
        return_full_text=True,
    )


def test_forms_support_the_hugging_face_dialect() -> None:
    body = "inputs=a%20b&max_new_tokens=3&stop=x&stop=y&details=true"
    found = request(typed(body, f"{FORM}; charset=UTF-8"))
    assert found == Request(
        HUGGING_FACE,
        ("a b",),
        max_new_tokens=3,
        stop=("x", "y"),
        return_full_text=True,
        details=True,
    )


@pytest.mark.parametrize("name", ["api-health", "rest-health", "url-health", "alb-health"])
def test_every_source_has_a_health_check(name: str) -> None:
    assert isinstance(job_of(load_event(name)), Health)


@pytest.mark.parametrize("source", HTTP)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_accepts_get_and_head(source: str, method: str) -> None:
    assert isinstance(job_of(http_event(source=source, path="/health", method=method)), Health)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "APPLICATION/JSON; charset=utf-8",
        "application/ld+json",
        'text/json;charset="UTF-8"',
    ],
)
def test_all_json_content_types_are_accepted(content_type: str | None) -> None:
    assert request(typed('{"prompt": "x"}', content_type)).prompts == ("x",)


def test_a_byte_order_mark_is_ignored() -> None:
    assert request(typed('\ufeff{"prompt": "x"}')).prompts == ("x",)
    assert request(typed(b'\xef\xbb\xbf{"prompt": "x"}')).prompts == ("x",)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json, application/json",
        "application/json,application/json; charset=utf-8",
        "text/plain, application/json",
        "application/json,",
        'application/json; profile="a,b"',
        'multipart/mixed; boundary=",", application/json',
    ],
)
@pytest.mark.parametrize("source", HTTP)
def test_the_last_of_several_content_types_counts(source: str, content_type: str) -> None:
    event = http_event(b'{"prompt": "x"}', source=source, headers={"content-type": content_type})
    assert request(event).prompts == ("x",)


def test_the_last_of_several_header_values_counts() -> None:
    event = load_event("alb-generate-multi-value")
    event["multiValueHeaders"]["content-type"] = ["text/plain", JSON]
    assert request(event).prompts
    event["multiValueHeaders"]["content-type"].reverse()
    with pytest.raises(UnsupportedContentType, match="text/plain"):
        job_of(event)


PROMPT = b'{"prompt": "x"}'


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(PROMPT)),
        ("GZIP", gzip.compress(PROMPT)),
        ("x-gzip", gzip.compress(PROMPT[:5]) + gzip.compress(PROMPT[5:])),
        ("deflate", zlib.compress(PROMPT)),
        ("identity", PROMPT),
        ("deflate, gzip", gzip.compress(zlib.compress(PROMPT))),
        ("", PROMPT),
    ],
)
@pytest.mark.parametrize("source", HTTP)
def test_a_compressed_body_is_decompressed(source: str, coding: str, body: bytes) -> None:
    headers = {"content-type": JSON, "CONTENT-Encoding": coding}
    assert request(http_event(body, source=source, headers=headers)).prompts == ("x",)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, gzip"])
@pytest.mark.parametrize("body", [PROMPT, PROMPT.decode()])
def test_a_body_that_the_gateway_has_decompressed_is_accepted(coding: str, body: Any) -> None:
    assert request(typed(body, Content_Encoding=coding)).prompts == ("x",)


def test_a_compressed_form_is_parsed() -> None:
    assert request(typed(gzip.compress(b"prompt=x"), FORM, Content_Encoding="gzip")).prompts == (
        "x",
    )


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, br", "gzip, gzip, gzip, gzip"])
def test_unsupported_codings_are_rejected_by_name(coding: str) -> None:
    name = coding.split(", ")[-1] if coding.count(",") < 3 else "codings"
    with pytest.raises(UnsupportedContentEncoding, match=name):
        job_of(typed(gzip.compress(PROMPT), Content_Encoding=coding))


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(PROMPT)[:-4],
        gzip.compress(PROMPT)[:12],
        gzip.compress(PROMPT)[:-8] + bytes(8),
        b"\x1f\x8bnonsense",
    ],
)
def test_invalid_gzip_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest, match="gzip"):
        job_of(typed(body, Content_Encoding="gzip"))


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(bytes(200 << 20), 1)),
        ("deflate", zlib.compress(bytes(200 << 20), 1)),
        ("gzip, gzip", gzip.compress(gzip.compress(bytes(200 << 20), 9))),
        ("gzip", b"".join([gzip.compress(bytes(1 << 20))] * 20)),
    ],
)
def test_a_zip_bomb_is_rejected_without_decompressing_it(coding: str, body: bytes) -> None:
    import tracemalloc

    event = typed(body, Content_Encoding=coding)
    tracemalloc.start()
    with pytest.raises(BodyTooLarge, match="limit"):
        job_of(event)
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()


def test_gzip_passed_as_text_is_an_error_with_the_fix() -> None:
    mangled = gzip.compress(PROMPT).decode("utf-8", "replace")
    with pytest.raises(UnsupportedContentEncoding, match="binary media types"):
        job_of(typed(mangled, Content_Encoding="gzip"))


def test_gzip_without_content_encoding_is_an_error_with_the_fix() -> None:
    with pytest.raises(BadRequest, match="Content-Encoding: gzip"):
        job_of(typed(gzip.compress(PROMPT)))


def test_a_stage_is_stripped_only_if_the_path_has_it() -> None:
    event = load_event("rest-generate")
    event["requestContext"]["stage"] = "generate"
    assert isinstance(job_of(event), Generate)
    event["path"] = "/generate/health"
    event["httpMethod"] = "GET"
    assert isinstance(job_of(event), Health)


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("/gpt2", "/gpt2/generate"),
        ("/gpt2", "/gpt2/generate/"),
        ("/gpt2", "/gpt2"),
        ("/gpt2", "/gpt2/"),
        ("/gpt2", "/generate"),
        ("/gpt2", "/"),
        ("/gpt2", "//gpt2//generate"),
        ("/team/gpt2", "/team/gpt2/generate"),
        ("/generate", "/generate/generate"),
    ],
)
@pytest.mark.parametrize("source", HTTP)
def test_a_base_path_is_stripped(source: str, base: str, path: str) -> None:
    event = http_event(source=source, path=path, prompt="x")
    assert request(event, base_path=base).prompts == ("x",)


@pytest.mark.parametrize("path", ["/prod/gpt2/generate", "/gpt2/prod/generate", "/prod/generate"])
@pytest.mark.parametrize("source", ["api", "rest"])
def test_a_base_path_and_a_stage_are_both_stripped(source: str, path: str) -> None:
    event = http_event(source=source, path=path, prompt="x")
    event["requestContext"]["stage"] = "prod"
    assert request(event, base_path="/gpt2").prompts == ("x",)


@pytest.mark.parametrize("path", ["/gpt2x/generate", "/GPT2/generate", "/gpt2/gpt2/generate"])
def test_a_similar_path_is_not_a_base_path(path: str) -> None:
    with pytest.raises(RouteNotFound):
        job_of(http_event(path=path, prompt="x"), base_path="/gpt2")


@pytest.mark.parametrize(
    "path", ["/generate/", "//generate", "/generate//", "///", "//generate///"]
)
@pytest.mark.parametrize("source", HTTP)
def test_repeated_and_trailing_slashes_are_ignored(source: str, path: str) -> None:
    assert request(http_event(source=source, path=path, prompt="x")).prompts == ("x",)


@pytest.mark.parametrize(
    "path", ["/gen%65rate", "/%67enerate", "%2Fgenerate", "/%2fgenerate", "/generate%2F"]
)
@pytest.mark.parametrize("source", NOT_DECODED)
def test_a_path_is_decoded_unless_its_source_has_done_so(source: str, path: str) -> None:
    assert request(http_event(source=source, path=path, prompt="x")).prompts == ("x",)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("api", "/gen%65rate"),
        *((source, path) for source in NOT_DECODED for path in ("/gen%2565rate", "/%ff", "/gen%6")),
    ],
)
def test_a_path_is_decoded_once(source: str, path: str) -> None:
    with pytest.raises(RouteNotFound):
        job_of(http_event(source=source, path=path, prompt="x"))


def test_an_http_api_decodes_paths_also_in_format_1() -> None:
    event = http_event(source="rest", path="/gen%65rate", prompt="x")
    assert request(event).prompts == ("x",)
    with pytest.raises(RouteNotFound):
        job_of(event | {"version": "1.0"})


@pytest.mark.parametrize("action", ["warmup", "populate"])
def test_operator_actions_are_rejected_over_http(action: str) -> None:
    for fields in ({action: True}, {action: True, "prompt": "x"}):
        with pytest.raises(BadRequest, match="not available over HTTP") as caught:
            job_of(http_event(**fields))
        assert caught.value.param == action


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (None, "empty"),
        ("", "empty"),
        ("{", "not JSON: Expecting property name"),
        ("[1]", "an array, not an object"),
        ('"prompt"', "not an object"),
        ("null", "null, not an object"),
        ('{"prompt": NaN}', "not JSON"),
        ('{"prompt": ' + "9" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "too deeply"),
        (5, "not a string"),
        ({"prompt": "x"}, "not a string"),
    ],
)
def test_a_body_that_is_not_a_json_object_is_rejected(body: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        job_of(typed(body))


@pytest.mark.parametrize(
    "body",
    ["prompt", "a=b&&", "prompt=%FF", "prompt=a&prompt=b", "&".join(f"a{i}=1" for i in range(300))],
)
def test_an_invalid_form_is_rejected(body: str) -> None:
    with pytest.raises(BadRequest):
        job_of(typed(body, FORM))


@pytest.mark.parametrize(
    ("body", "kind"), [("[]", "an array"), (' ["a=b"]', "an array"), ('"a=b"', "'a=b'")]
)
@pytest.mark.parametrize("content_type", [FORM, "application/json"])
def test_json_that_is_not_an_object_gets_the_same_error_with_curls_content_type(
    body: str, kind: str, content_type: str
) -> None:
    with pytest.raises(BadRequest, match=f"^the body is {kind}, not an object: send "):
        job_of(typed(body, content_type))


@pytest.mark.parametrize("dialect", SUPPORTED, ids=name_of)
def test_the_example_of_an_error_is_a_valid_request_on_every_route(dialect: Dialect) -> None:
    with pytest.raises(BadRequest) as caught:
        job_of(http_event("", path=path_of(dialect)))
    example = caught.value.message.partition("send ")[2]
    job = job_of(http_event(example, path=path_of(dialect)))
    assert job.request.prompts == ("Once upon a time",)


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "json"])
def test_other_content_types_are_rejected_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedContentType, match=kind.split(";")[0]):
        job_of(typed('{"prompt": "x"}', kind))


def test_other_charsets_are_rejected_by_name() -> None:
    with pytest.raises(UnsupportedContentType, match="latin-1"):
        job_of(typed('{"prompt": "x"}', "application/json; charset=latin-1"))


@pytest.mark.parametrize("body", ["A" * (9 << 20), b"A" * (9 << 20)])
def test_a_body_over_six_megabytes_is_rejected(body: Any) -> None:
    with pytest.raises(BodyTooLarge, match="limit"):
        job_of(typed(body))


def test_the_404_reply_lists_the_routes_that_are_supported() -> None:
    with pytest.raises(RouteNotFound) as raised:
        job_of(load_event("bad-route"))
    problem, _, listed = raised.value.message.partition("; routes: ")
    assert problem == "no route '/v2/unknown'"
    served = {
        f"{method} {path}".replace("/models/", "/models/{id}")
        for dialect in SUPPORTED
        for path, methods in dialect.routes.items()
        for method in methods
    }
    assert {"POST /generate", "POST /v1/completions", "GET /v1/models/{id}"} <= served
    assert sorted(listed.split(", ")) == sorted(
        served | {"GET /", "GET /health", "GET /openapi.json"}
    )


@pytest.mark.parametrize("method", ["GET", "DELETE", "PROPFIND", "M-SEARCH", "ge\tt", "\udfff"])
@pytest.mark.parametrize("source", HTTP)
def test_the_405_reply_lists_the_allowed_methods(source: str, method: str) -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        job_of(http_event(source=source, method=method, prompt="x"))
    assert caught.value.allow == "POST"
    assert caught.value.message.isascii()


@pytest.mark.parametrize(
    ("source", "seconds"), [("api", 30), ("rest", 29), ("alb", 60), ("url", None)]
)
def test_each_source_has_its_documented_timeout(source: str, seconds: int | None) -> None:
    found = source_of(http_event(source=source, prompt="x"))
    assert found.timeout_s(Settings()) == seconds
    assert found.timeout_s(Settings(http_timeout=7)) == 7
