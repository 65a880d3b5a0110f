"""Events of every AWS service, original and mutated, are processed or raise an error: a reply to an
unsupported event would count as success.
"""

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gpt2core.errors import GPT2Error
from handler.app import Function
from handler.errors import RouteNotFound, UnsupportedEvent
from handler.items import Item, S3Object
from handler.jobs import Job, Messages, Objects
from handler.settings import Settings
from handler.sources import source_of
from tests.support.events import Context, event_names, load_event
from tests.support.models import small_config, write_model
from tests.support.service_events import GUIDES, SAM_PYTHON, sam_events

needs_sam = pytest.mark.skipif(
    not SAM_PYTHON.exists(), reason="SAM is not installed: `make test` does"
)
KINDS = {
    "alb request": "alb",
    "apigateway aws-proxy": "api_gateway_v1",
    "apigateway http-api-proxy": "api_gateway_v2",
    "cloudwatch scheduled-event": "schedule",
    "s3 put": "s3",
    "sqs receive-message": "sqs",
}
# SAM's Rekognition event is an S3 notification.
SERVED = {*KINDS, "rekognition s3-request"}
# Input of the caller, which must not be in log lines or messages of raised errors.
SECRET = "patient John Doe"
DIRECT = {"prompt", "inputs", "warmup", "populate"}


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Function:
    folder = write_model(tmp_path_factory.mktemp("services"), small_config(n_positions=32))
    return Function(Settings(model_dir=str(folder), model_dir_named=True))


def job_of(event: Any) -> Job:
    return source_of(event).parse(Settings())


@needs_sam
@pytest.mark.parametrize("name", sorted(KINDS))
def test_supported_sources_are_recognized(name: str) -> None:
    assert source_of(sam_events()[name]).kind == KINDS[name]


@pytest.mark.parametrize(
    "name", event_names("alb", "api", "rest", "url", "direct", "schedule", "batch")
)
def test_the_source_of_every_event_file_is_recognized(name: str) -> None:
    kinds = {"api": "api_gateway_v2", "rest": "api_gateway_v1", "url": "function_url"}
    first, _, rest = name.partition("-")
    kind = rest.partition("-")[0].replace("step", "step_functions") if first == "batch" else first
    assert source_of(load_event(name)).kind == kinds.get(kind, kind)


@needs_sam
def test_sams_sqs_and_s3_events_are_parsed() -> None:
    event = copy.deepcopy(sam_events()["sqs receive-message"])
    event["Records"][0]["body"] = '{"prompt": "a"}'
    job = job_of(event)
    assert isinstance(job, Messages)
    assert isinstance(job.records[0].content, Item)
    event = sam_events()["s3 put"]
    stored, job = event["Records"][0]["s3"], job_of(event)
    assert isinstance(job, Objects)
    assert job.objects == (
        S3Object(stored["bucket"]["name"], "test/key", stored["object"]["eTag"]),
    )


@needs_sam
def test_other_events_of_sam_are_rejected() -> None:
    others = {name: event for name, event in sam_events().items() if name not in SERVED}
    assert len(others) > 25
    for name, event in others.items():
        with pytest.raises((UnsupportedEvent, RouteNotFound)):
            pytest.fail(f"{name}: {job_of(event)}")


@pytest.mark.parametrize("name", GUIDES)
def test_events_of_other_services_are_rejected(function: Function, name: str) -> None:
    with pytest.raises(UnsupportedEvent, match="supported"):
        function.invoke(GUIDES[name], Context())


@pytest.mark.parametrize(
    "name", [n for n in GUIDES if isinstance(GUIDES[n], dict) and n != "S3 object deleted"]
)
@pytest.mark.parametrize("field", sorted(DIRECT))
def test_unknown_fields_beside_a_request_are_named(
    function: Function, name: str, field: str
) -> None:
    """An event that no other source recognizes is direct if it has one of these fields."""
    event = GUIDES[name] | {field: "a"}
    reply = function.invoke(event, Context())
    assert "error" in reply or (name == "an empty object" and field in ("prompt", "inputs"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [
        *DIRECT,
        *("Records", "records", "Items", "BatchInput", "Event", "source", "detail-type", "detail"),
        *("requestContext", "httpMethod", "path", "rawPath", "body", "eventSource", "messageId"),
        *("methodArn", "routeArn", "elb", "http", "s3", SECRET),
    ]
)
VALUES = JSON | st.sampled_from(
    ["aws:sqs", "aws:s3", "aws.s3", "aws.events", "s3:TestEvent", "Scheduled Event", SECRET, {}, []]
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """All containers and keys in a JSON value."""
    found: list[tuple[Any, Any]] = []
    keys: list[Any] = list(value) if isinstance(value, dict) else []
    keys += range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        found += places(value[key])
    return found


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """An event of a service with parts removed, added or replaced."""
    known = GUIDES | sam_events() | {name: load_event(name) for name in event_names()}
    event = copy.deepcopy(known[draw(st.sampled_from(sorted(known)))])
    if isinstance(event, dict) and draw(st.integers(0, 9)) == 0:
        event = next((value for value in event.values() if isinstance(value, list)), [event])
    for _ in range(draw(st.integers(0, 3))):
        within = places(event)
        if not within:
            break
        container, key = within[draw(st.integers(0, len(within) - 1))]
        how = draw(st.sampled_from(["delete", "replace", "add", "rename"]))
        if how == "delete":
            del container[key]
        elif how == "replace":
            container[key] = draw(VALUES)
        elif isinstance(container, list):
            container.append(draw(VALUES))
        elif how == "rename":
            container[draw(KEYS)] = container.pop(key)
        else:
            container[draw(KEYS)] = draw(VALUES)
    return event


def check_processed_or_rejected(function: Function, event: Any, log: list[Any]) -> None:
    log.clear()
    reply, raised = None, ""
    try:
        reply = function.invoke(copy.deepcopy(event), Context())
    except GPT2Error as error:
        raised = error.message
    assert SECRET not in raised + str(log)
    if raised:
        return
    kind = log[-1][0]
    json.dumps(reply, allow_nan=False)
    if kind in ("alb", "api_gateway_v1", "api_gateway_v2", "function_url"):
        done = json.loads(reply["body"])
        failed = isinstance(done, dict) and "error" in done
        assert failed == (reply["statusCode"] >= 400), reply
        assert reply["statusCode"] != 500
    elif kind == "direct":
        assert not DIRECT.isdisjoint(event)
    elif kind == "schedule":
        assert event["source"] in ("aws.events", "aws.scheduler")
        assert event["detail-type"] == "Scheduled Event"
    elif kind == "s3":
        assert event["Event"] == "s3:TestEvent"
        assert reply == {"objects": []}
    else:  # queue messages raise an error, because GPT2_RESULTS is not set
        assert kind == "step_functions"
        assert len(reply["results"]) == len(event["Items"])
        for item, result in zip(event["Items"], reply["results"], strict=True):
            is_valid = isinstance(item, dict) or isinstance(event.get("BatchInput"), dict)
            assert is_valid or result["status"] == "error"
            assert (result["status"] == "error") == ("error" in result)


@pytest.fixture
def log(function: Function, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The log lines of invokes, with the source first, and of errors."""
    found: list[Any] = []
    monkeypatch.setattr(function, "log_invoke", lambda *about: found.append(about[:2] + about[3:]))
    monkeypatch.setattr(function, "log_error", lambda error, _: found.append((str(error),)))
    return found


SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@hypothesis_settings(max_examples=300, suppress_health_check=SUPPRESSED)
@given(mutated())
def test_any_event_is_processed_or_rejected(function: Function, log: list[Any], event: Any) -> None:
    check_processed_or_rejected(function, event, log)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@hypothesis_settings(max_examples=4_000, suppress_health_check=SUPPRESSED)
@given(mutated())
def test_many_events_are_processed_or_rejected(
    function: Function, log: list[Any], event: Any
) -> None:
    check_processed_or_rejected(function, event, log)
