import base64
import json
from typing import Any

import pytest

from handler import events
from handler.dialects import Request
from handler.errors import (
    BadRequest,
    BodyTooLarge,
    LimitExceeded,
    MethodNotAllowed,
    RouteNotFound,
    UnsupportedContentType,
    UnsupportedEvent,
)
from handler.events import Job, Source
from tests.conftest import ROOT, load_event


def parse(event: Any) -> Job:
    return events.parse(event, events.source_of(event))


def request(event: Any) -> Request:
    found = parse(event).request
    assert found is not None
    return found


def url_event(body: str | None, content_type: str | None = "application/json") -> dict[str, Any]:
    event = load_event("url-generate")
    event["body"] = body
    event["headers"].pop("content-type")
    if content_type is not None:
        event["headers"]["Content-TYPE"] = content_type
    return dict(event)


def json_event(**fields: Any) -> dict[str, Any]:
    return url_event(json.dumps(fields))


SOURCES = {
    "api": "api_gateway_v2",
    "rest": "api_gateway_v1",
    "url": "function_url",
    "alb": "alb",
    "direct": "direct",
    "schedule": "schedule",
}
UNSUPPORTED = sorted(p.stem for p in (ROOT / "events").glob("unsupported-*.json"))


@pytest.mark.parametrize(
    "name",
    sorted(
        p.stem for p in (ROOT / "events").glob("*.json") if p.stem[:3] not in ("bad", "uns", "bat")
    ),
)
def test_the_source_of_every_event_file_is_recognized(name: str) -> None:
    assert events.source_of(load_event(name)).kind == SOURCES[name.split("-")[0]]


def test_multi_value_headers_of_a_load_balancer_are_recognized() -> None:
    assert events.source_of(load_event("alb-generate-multi-value")) == Source("alb", True)
    assert events.source_of(load_event("alb-generate")) == Source("alb", False)


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
def test_the_same_request_arrives_the_same_from_every_source(name: str) -> None:
    assert request(load_event(name)) == Request(
        "native",
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
def test_the_hugging_face_dialect_arrives_the_same_from_every_source(name: str) -> None:
    assert request(load_event(name)) == Request(
        "huggingface",
        ("The princess went into the forest and",),
        max_new_tokens=24,
        stop=(".",),
        return_full_text=True,
        details=True,
    )


def test_form_fields_are_typed() -> None:
    assert request(load_event("api-generate-form-fields")) == Request(
        "native",
        ("The old woman said",),
        max_new_tokens=16,
        stop=(".",),
        return_full_text=True,
    )


def test_form_fields_speak_the_hugging_face_dialect_too() -> None:
    body = "inputs=a%20b&max_new_tokens=3&stop=x&stop=y&details=true"
    found = request(url_event(body, "application/x-www-form-urlencoded; charset=UTF-8"))
    assert found == Request(
        "huggingface",
        ("a b",),
        max_new_tokens=3,
        stop=("x", "y"),
        return_full_text=True,
        details=True,
    )


@pytest.mark.parametrize("name", ["api-health", "rest-health", "url-health", "alb-health"])
def test_health_is_asked_for_from_every_source(name: str) -> None:
    assert parse(load_event(name)) == Job("health")


@pytest.mark.parametrize("name", ["direct-warmup", "schedule"])
def test_warm_ups(name: str) -> None:
    assert parse(load_event(name)) == Job("warmup")


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
def test_json_is_read_under_each_of_its_names(content_type: str | None) -> None:
    assert request(url_event('{"prompt": "x"}', content_type)).prompts == ("x",)


def test_a_byte_order_mark_is_no_part_of_the_json() -> None:
    assert request(url_event('\ufeff{"prompt": "x"}')).prompts == ("x",)
    event = json_event() | {"isBase64Encoded": True}
    event["body"] = base64.b64encode(b'\xef\xbb\xbf{"prompt": "x"}').decode()
    assert request(event).prompts == ("x",)


def test_null_is_a_field_left_out() -> None:
    found = request(
        json_event(prompt="x", max_new_tokens=None, stop=None, id=None, return_full_text=None)
    )
    assert found == Request("native", ("x",))


def test_prompts_in_a_list_stay_in_order() -> None:
    found = request(load_event("api-generate-prompts"))
    assert (found.prompts, found.is_list, found.id) == (("The wolf", "The queen"), True, "pair-1")


@pytest.mark.parametrize("name", ["temperature", "top_p", "seed"])
def test_sampling_is_refused_in_words_that_help(name: str) -> None:
    with pytest.raises(BadRequest, match=f"{name} is not supported, decoding is greedy"):
        parse(json_event(inputs="x", parameters={name: 1}))
    assert request(json_event(inputs="x", parameters={name: None})).prompts == ("x",)


def test_neutral_values_of_sampling_parameters_are_accepted() -> None:
    neutral = {"do_sample": False, "repetition_penalty": 1.0, "num_return_sequences": 1}
    assert request(json_event(inputs="x", parameters=neutral, options={"use_cache": True})).prompts


def test_a_stage_is_only_taken_off_where_the_path_has_it() -> None:
    event = load_event("rest-generate")
    event["requestContext"]["stage"] = "generate"
    assert parse(event).action == "generate"
    event["path"] = "/generate/health"
    event["httpMethod"] = "GET"
    assert parse(event).action == "health"


def test_a_trailing_slash_is_the_same_route() -> None:
    event = json_event(prompt="x")
    event["rawPath"] = "/generate/"
    assert parse(event).action == "generate"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_new_tokens": 5}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["x", 5]}, "prompt[1]"),
        ({"prompt": "x", "inputs": "y"}, "prompt"),
        ({"prompt": "x", "max_new_tokens": -1}, "max_new_tokens"),
        ({"prompt": "x", "max_new_tokens": 1.0}, "max_new_tokens"),
        ({"prompt": "x", "max_new_tokens": "5"}, "max_new_tokens"),
        ({"prompt": "x", "max_new_tokens": True}, "max_new_tokens"),
        ({"prompt": "x", "stop": ""}, "stop"),
        ({"prompt": "x", "stop": [""]}, "stop"),
        ({"prompt": "x", "stop": {"a": 1}}, "stop"),
        ({"prompt": "x", "return_full_text": "yes"}, "return_full_text"),
        ({"prompt": "x", "stream": True}, "stream"),
        ({"prompt": "x", "stream": 1}, "stream"),
        ({"prompt": "x", "id": "\ud800"}, "id"),
        ({"prompt": "x", "temperature": 0.5}, "temperature"),
        ({"prompt": "x", "m\ud800": 1}, "m\\ud800"),
        ({"prompt": "x", "warmup": True}, "warmup"),
        ({"inputs": 5}, "inputs"),
        ({"inputs": "x", "parameters": []}, "parameters"),
        ({"inputs": "x", "options": 5}, "options"),
        ({"inputs": "x", "model": "gpt2"}, "model"),
        ({"inputs": "x", "parameters": {"max_new_tokens": "5"}}, "parameters.max_new_tokens"),
        ({"inputs": "x", "parameters": {"stop": [5]}}, "parameters.stop"),
        ({"inputs": "x", "parameters": {"do_sample": True}}, "parameters.do_sample"),
        ({"inputs": "x", "parameters": {"top_k": 5}}, "parameters.top_k"),
        ({"inputs": "x", "parameters": {"details": "yes"}}, "parameters.details"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(json_event(**fields))
    assert caught.value.param == param
    assert caught.value.message.isascii()


def test_too_many_prompts_or_stops_and_too_long_ones_are_refused() -> None:
    for fields in (
        {"prompt": ["x"] * 129},
        {"prompt": "x", "stop": ["x"] * 65},
        {"prompt": "x", "stop": "x" * 257},
    ):
        with pytest.raises(LimitExceeded, match="limit"):
            parse(json_event(**fields))


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
def test_a_body_that_is_no_json_object_is_refused(body: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse(url_event(body))


@pytest.mark.parametrize(
    "body",
    ["prompt", "a=b&&", "prompt=%FF", "prompt=a&prompt=b", "&".join(f"a{i}=1" for i in range(300))],
)
def test_a_form_that_cannot_be_read_is_refused(body: str) -> None:
    with pytest.raises(BadRequest):
        parse(url_event(body, "application/x-www-form-urlencoded"))


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "json"])
def test_other_content_types_are_refused_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedContentType, match=kind.split(";")[0]):
        parse(url_event('{"prompt": "x"}', kind))


def test_other_charsets_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedContentType, match="latin-1"):
        parse(url_event('{"prompt": "x"}', "application/json; charset=latin-1"))


def test_a_body_over_six_megabytes_is_refused() -> None:
    for encoded in (False, True):
        event = url_event("A" * (9 * 1024 * 1024)) | {"isBase64Encoded": encoded}
        with pytest.raises(BodyTooLarge, match="limit"):
            parse(event)


def test_an_unknown_route_and_a_wrong_method_are_told_apart() -> None:
    with pytest.raises(RouteNotFound, match="/v2/unknown"):
        parse(load_event("bad-route"))
    with pytest.raises(MethodNotAllowed) as caught:
        parse(load_event("bad-method"))
    assert caught.value.allow == "POST"


@pytest.mark.parametrize("event", [None, [], "text", 5, True])
def test_an_event_that_is_no_object_is_refused(event: Any) -> None:
    with pytest.raises(BadRequest, match="not an object"):
        parse(event)


@pytest.mark.parametrize("warmup", [False, "yes", None])
def test_a_warm_up_is_exact(warmup: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        parse({"warmup": warmup})
    assert caught.value.param == "warmup"


@pytest.mark.parametrize(
    "event",
    [
        *(load_event(name) for name in UNSUPPORTED if "s3" not in name),
        {"Records": []},
        {"source": "aws.ec2", "detail-type": "EC2 Instance State-change Notification"},
        {"type": "TOKEN", "methodArn": "arn:aws:execute-api:…"},
        {"type": "REQUEST", "methodArn": "arn", "httpMethod": "GET", "requestContext": {}},
        {"type": "REQUEST", "routeArn": "arn", "version": "2.0", "requestContext": {"http": {}}},
        {"requestContext": {"eventType": "MESSAGE", "connectionId": "x"}, "body": "{}"},
        {"awslogs": {"data": ""}},
    ],
)
def test_events_of_other_services_are_raised_so_that_nothing_is_taken_for_done(event: Any) -> None:
    with pytest.raises(UnsupportedEvent, match="supported: direct"):
        events.source_of(event)
