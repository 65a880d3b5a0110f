"""Every event that `sam local generate-event` knows, as AWS documents them."""

import json
import subprocess
from typing import Any

import pytest

from gpt2core.errors import GPT2Error
from handler import events
from handler.batch_events import Item, S3Object
from handler.errors import BadRequest, RouteNotFound, UnsupportedEvent
from tests.conftest import ROOT

PYTHON = ROOT / ".venv-dev" / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="SAM is not installed: `make test` does"
)
_ALL = """
import json
from samcli.lib.generated_sample_events.events import Events
library, found = Events(), {}
for service, kinds in library.event_mapping.items():
    for kind, about in kinds.items():
        if "tags" in about:
            values = {name: tag.get("default") for name, tag in about["tags"].items()}
            found[f"{service} {kind}"] = json.loads(library.generate_event(service, kind, values))
print(json.dumps(found))
"""
SOURCES = {
    "alb request": "alb",
    "apigateway aws-proxy": "api_gateway_v1",
    "apigateway http-api-proxy": "api_gateway_v2",
    "cloudwatch scheduled-event": "schedule",
    "s3 put": "s3",
    "sqs receive-message": "sqs",
}
UNSUPPORTED = {
    "apigateway authorizer",
    "apigateway request-authorizer",
    "cloudwatch logs",
    "dynamodb update",
    "s3 delete",
    "ses email-receiving",
    "sns notification",
}


@pytest.fixture(scope="module")
def generated() -> dict[str, Any]:
    command = [PYTHON, "-W", "ignore", "-c", _ALL]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_all_events_that_are_told_apart_are_there(generated: dict[str, Any]) -> None:
    assert len(generated) > 25
    assert SOURCES.keys() <= generated.keys()


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_source_that_is_served_is_recognized(generated: dict[str, Any], name: str) -> None:
    assert events.source_of(generated[name]).kind == SOURCES[name]


def test_a_message_is_a_request(generated: dict[str, Any]) -> None:
    event = generated["sqs receive-message"]
    event["Records"][0]["body"] = '{"prompt": "a"}'
    (record,) = events.parse(event, events.source_of(event)).records
    assert isinstance(record.work, Item)


def test_a_file_is_found(generated: dict[str, Any]) -> None:
    event = generated["s3 put"]
    (found,) = events.parse(event, events.source_of(event)).objects
    stored = event["Records"][0]["s3"]
    assert found == S3Object(stored["bucket"]["name"], "test/key", stored["object"]["eTag"])


def refusal_of(event: Any) -> GPT2Error | None:
    try:
        events.parse(event, events.source_of(event))
    except GPT2Error as error:
        return error
    return None


def test_everything_else_is_an_error_and_says_what_is_served(generated: dict[str, Any]) -> None:
    refused = {name: refusal_of(event) for name, event in generated.items()}
    served = {name for name, error in refused.items() if error is None}
    # A request to Rekognition is what S3 says of any new file.
    assert served <= SOURCES.keys() | {"rekognition s3-request"}
    raised = {n: e.message for n, e in refused.items() if isinstance(e, UnsupportedEvent)}
    assert UNSUPPORTED & generated.keys() <= raised.keys()
    for message in raised.values():
        assert "supported: direct" in message or "created objects only" in message
    others = {n: refused[n] for n in refused.keys() - served - raised.keys()}
    assert {n: e for n, e in others.items() if not isinstance(e, (BadRequest, RouteNotFound))} == {}
