"""Batches of a Distributed Map: what the function replies, and the state machine in moto."""

import json
from typing import Any
from urllib.request import Request, urlopen

import pytest

from gpt2core import Engine
from handler.app import Function
from handler.batch_events import parse_item
from handler.errors import BadRequest, BodyTooLarge, ModelUnavailable, Unfinished
from handler.generation import Completion
from handler.replies import MAX_STATE_BYTES, map_results
from handler.settings import Settings
from tests.conftest import DEMO
from tests.ports import wait_until
from tests.s3_server import CREDENTIALS, Bucket, moto_server
from tests.test_batch_template import definition  # noqa: F401 (a fixture)
from tests.test_queue import Context


@pytest.fixture(scope="module")
def function() -> Function:
    return Function(Settings(model_dir=str(DEMO)))


def test_every_item_has_its_result_in_order(function: Function, demo: Engine) -> None:
    items = [{"prompt": "The wolf", "id": "a"}, {"prompt": 5, "custom_id": 7}, {"inputs": "A fox"}]
    results = function.invoke({"Items": items}, Context())["results"]
    assert [(r["id"], r["index"], r["status"]) for r in results] == [
        ("a", 0, "ok"),
        (7, 1, "error"),
        (None, 2, "ok"),
    ]
    assert results[0]["generated_text"] == demo.generate("The wolf").text
    assert results[1]["error"]["param"] == "prompt"
    assert "timings_ms" not in results[0]


def test_the_same_batch_gives_the_same_bytes(function: Function) -> None:
    event = {"Items": [{"prompt": "The wolf"}] * 3, "BatchInput": {"max_new_tokens": 3}}
    first, second = (json.dumps(function.invoke(event, Context())) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("text", ["a" * 2000, "ä" * 400, "x" * 90_000])
def test_a_reply_is_never_larger_than_step_functions_carries(text: str) -> None:
    items = [parse_item({"prompt": "a", "id": i}) for i in range(300)]
    done = [[Completion("a", text if i % 3 else "b", [1], 1, "length")] for i in range(300)]
    reply = map_results(items, done)
    assert len(json.dumps(reply).encode()) <= MAX_STATE_BYTES
    results = reply["results"]
    kinds = ["".join(r.get("error", {}).get("type", "ok")) for r in results]
    assert set(kinds) == {"ok", "BodyTooLarge"}
    assert [(r["index"], r["id"]) for r in results] == [(i, i) for i in range(300)]


def test_a_long_id_does_not_make_a_reply_too_large() -> None:
    items = [parse_item({"prompt": "a", "id": "x" * 300_000})]
    (result,) = map_results(items, [[Completion("a", "b", [1], 1, "length")]])["results"]
    assert (result["id"], result["error"]["type"]) == (None, "BodyTooLarge")


def test_a_batch_whose_errors_would_not_fit_is_raised() -> None:
    items = [parse_item({"prompt": "a"})] * 3000
    with pytest.raises(BodyTooLarge, match="3000 items"):
        map_results(items, [[Completion("a", "b", [1], 1, "length")]] * 3000)


def test_what_a_retry_can_help_is_raised(function: Function) -> None:
    function.invoke({"warmup": True}, Context())
    with pytest.raises(Unfinished, match="2 of 3 items"):
        function.invoke({"Items": [{"prompt": "a"}, {"prompt": "b"}, {"x": 1}]}, Context(0))
    broken = Function(Settings(model_dir="/nowhere", model_dir_named=True))
    with pytest.raises(ModelUnavailable):
        broken.invoke({"Items": [{"prompt": "a"}]}, Context())


def test_what_is_no_batch_is_raised_with_its_type(function: Function) -> None:
    with pytest.raises(BadRequest, match="not an array"):
        function.invoke({"Items": "a"}, Context())


def run(address: str, states: dict[str, Any], given: dict[str, Any]) -> Any:
    """Create a state machine in moto, run it, and return its output."""
    import boto3

    client: Any = boto3.client(
        "stepfunctions",
        endpoint_url=f"http://{address}",
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )
    machine = client.create_state_machine(
        name="derived", definition=json.dumps(states), roleArn="arn:aws:iam::123456789012:role/x"
    )["stateMachineArn"]
    execution = client.start_execution(stateMachineArn=machine, input=json.dumps(given))
    arn = execution["executionArn"]
    wait_until(lambda: client.describe_execution(executionArn=arn)["status"] != "RUNNING")
    done = client.describe_execution(executionArn=arn)
    assert done["status"] == "SUCCEEDED", done
    return json.loads(done["output"])


def test_a_copy_of_the_state_machine_runs_in_moto(
    definition: dict[str, Any],  # noqa: F811
) -> None:
    # Less what moto does not know: JSONL, ItemBatcher, tolerated failures, paths in ResultWriter.
    # No function is there to be called: each item passes through.
    state = dict(definition["States"]["Prompts"])
    del state["ItemBatcher"], state["ToleratedFailurePercentage"], state["ResultWriter"]
    state["ItemReader"] = state["ItemReader"] | {"ReaderConfig": {"InputType": "JSON"}}
    states = {"Generate": {"Type": "Pass", "End": True}}
    state["ItemProcessor"] = state["ItemProcessor"] | {"States": states}
    prompts = [{"prompt": f"Once {i}", "id": i} for i in range(5)]
    with moto_server() as address:
        config = json.dumps({"stepfunctions": {"execute_state_machine": True}}).encode()
        headers = {"Content-Type": "application/json"}
        urlopen(Request(f"http://{address}/moto-api/config", config, headers)).close()
        Bucket(address, "prompts").put("a.json", json.dumps(prompts).encode())
        copy = definition | {"States": {"Prompts": state}}
        assert run(address, copy, {"bucket": "prompts", "key": "a.json"}) == prompts
