"""The stack for queues and files: properties that linters do not check."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.cloudformation import SAM_PYTHON, Stack
from tests.support.state_machine import SETTINGS, state_machine

pytestmark = pytest.mark.skipif(
    not SAM_PYTHON.exists(), reason="SAM is not installed: `make test` does"
)

TIMES_THE_TIMEOUT = 6  # AWS Lambda Developer Guide, "Configuring a queue to use with Lambda"
DAY_S = 24 * 3600
MAX_NAME = 80  # AWS Step Functions API Reference, CreateStateMachine
LONGEST_INVOKE_S = 900


def batches(**parameters: Any) -> Stack:
    """The nested stack with all parts enabled by default."""
    return Stack(
        **{"Queue": "standard", "Files": "yes", "StateMachine": "yes"} | parameters
    ).nested("BatchStack")


@pytest.fixture(scope="module")
def stack() -> Stack:
    return batches()


@pytest.fixture(scope="module")
def definition() -> dict[str, Any]:
    return state_machine()


def test_a_message_stays_hidden_for_six_times_the_timeout(stack: Stack) -> None:
    timeout = stack.properties("Function")["Timeout"]
    assert timeout <= LONGEST_INVOKE_S
    assert stack.properties("Messages")["VisibilityTimeout"] >= TIMES_THE_TIMEOUT * timeout


def test_the_queue_uses_partial_batch_responses(stack: Stack) -> None:
    poll = stack.properties("Poll")
    assert poll["FunctionName"] == "<FunctionAliaslive>"
    assert poll["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert poll["ScalingConfig"]["MaximumConcurrency"] == stack.parameters["MaximumConcurrency"]
    assert poll["BatchSize"] <= 10  # the maximum for a FIFO queue


@pytest.mark.parametrize("kind", ["standard", "fifo"])
def test_failed_work_goes_to_dead_letter_queues(kind: str) -> None:
    stack = batches(Queue=kind, StateMachine="no")
    messages, dead = stack.properties("Messages"), stack.properties("DeadLetters")
    assert messages["RedrivePolicy"]["deadLetterTargetArn"] == "<DeadLetters.Arn>"
    assert messages["RedrivePolicy"]["maxReceiveCount"] > 1
    assert messages.get("FifoQueue") == dead.get("FifoQueue") == (True if kind == "fifo" else None)
    failed = stack.properties("Failed")
    assert failed["MessageRetentionPeriod"] == 14 * DAY_S
    (invoke,) = stack.of_type("AWS::Lambda::EventInvokeConfig").values()
    assert invoke["Qualifier"] == "live"
    assert invoke["DestinationConfig"]["OnFailure"]["Destination"] == "<Failed.Arn>"
    (target,) = stack.properties("NewFile")["Targets"]
    assert target["DeadLetterConfig"]["Arn"] == "<Failed.Arn>"


def test_dead_letters_are_kept_days_longer_than_messages(stack: Stack) -> None:
    messages, dead = stack.properties("Messages"), stack.properties("DeadLetters")
    # Includes the time that the message spent in its queue.
    assert dead["MessageRetentionPeriod"] - messages["MessageRetentionPeriod"] >= 7 * DAY_S
    tries = messages["RedrivePolicy"]["maxReceiveCount"] * messages["VisibilityTimeout"]
    assert messages["MessageRetentionPeriod"] > 2 * tries


def test_results_do_not_invoke_the_function(stack: Stack) -> None:
    pattern = stack.properties("NewFile")["EventPattern"]
    assert pattern["detail"]["bucket"]["name"] == ["<Prompts>"]
    variables = stack.properties("Function")["Environment"]["Variables"]
    assert variables["GPT2_RESULTS"] == "s3://<Results>/results"
    assert "NotificationConfiguration" not in stack.properties("Results")


def test_only_supported_files_invoke_the_function(stack: Stack) -> None:
    from handler.batch.file import S3_FILES

    pattern = stack.properties("NewFile")["EventPattern"]
    assert {rule["suffix"] for rule in pattern["detail"]["object"]["key"]} == set(S3_FILES)


def test_the_batch_function_is_not_public(stack: Stack) -> None:
    assert not stack.of_type("AWS::Lambda::Url")
    (permission,) = stack.of_type("AWS::Lambda::Permission").values()
    assert permission["Principal"] == "events.amazonaws.com"
    assert permission["SourceArn"] == "<NewFile.Arn>"


def test_buckets_and_queues_are_encrypted_private_and_expire_their_content(stack: Stack) -> None:
    buckets = stack.of_type("AWS::S3::Bucket")
    assert buckets.keys() == {"Prompts", "Results"}
    for bucket in buckets.values():
        assert bucket["BucketEncryption"]
        assert all(bucket["PublicAccessBlockConfiguration"].values())
        (rule,) = bucket["LifecycleConfiguration"]["Rules"]
        assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
        assert rule["ExpirationInDays"] == stack.parameters["ResultsDays"]
    for policy in stack.of_type("AWS::S3::BucketPolicy").values():
        (statement,) = policy["PolicyDocument"]["Statement"]
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": False}}
    queues = stack.of_type("AWS::SQS::Queue")
    assert len(queues) == 3
    assert all(queue["SqsManagedSseEnabled"] for queue in queues.values())


@pytest.mark.parametrize(
    ("switches", "made", "not_made"),
    [
        ({"Queue": "standard"}, {"Messages", "DeadLetters", "Poll"}, {"Prompts", "NewFile"}),
        ({"Files": "yes"}, {"Prompts", "NewFile"}, {"Messages", "Poll", "LargeFilesStack"}),
        ({"Files": "yes", "StateMachine": "yes"}, {"LargeFilesStack", "Prompts"}, {"Messages"}),
    ],
)
def test_every_part_can_be_disabled(
    switches: dict[str, str], made: set[str], not_made: set[str]
) -> None:
    resources = Stack(**switches).nested("BatchStack").resources.keys()
    assert made <= resources
    assert not not_made & resources
    assert "BatchStack" not in Stack().resources


def test_the_name_of_the_state_machine_is_short_enough_for_any_stack(stack: Stack) -> None:
    machine = stack.nested("LargeFilesStack")
    name = machine.properties("Batches")["StateMachineName"]
    assert len(name) <= MAX_NAME
    # The name includes the id of the stack, so it is unique.
    variables = stack.properties("Function")["Environment"]["Variables"]
    assert variables["GPT2_STATE_MACHINE"].endswith(f":stateMachine:{name}")
    assert len(name.removeprefix("gpt2-")) == len("0c1b2a3f-7b61-11e6-9a41-93e8deadbeef")


def test_the_state_machine_logs_failures_without_prompts(stack: Stack) -> None:
    machine = stack.nested("LargeFilesStack")
    logging = machine.properties("Batches")["LoggingConfiguration"]
    (destination,) = logging["Destinations"]
    assert destination["CloudWatchLogsLogGroup"]["LogGroupArn"] == "<Logs.Arn>"
    assert (logging["Level"], logging["IncludeExecutionData"]) == ("ERROR", False)
    assert machine.properties("Logs")["LogGroupName"].startswith("/aws/vendedlogs/states/")


def test_the_state_machines_timeout_is_longer_than_an_invoke(
    definition: dict[str, Any],
) -> None:
    busy, failed = definition["States"]["Prompts"]["ItemProcessor"]["States"]["Generate"]["Retry"]
    assert {"Lambda.TooManyRequestsException", "Lambda.ServiceException"} <= {*busy["ErrorEquals"]}
    assert failed["ErrorEquals"] == ["States.ALL"]
    assert failed["MaxAttempts"] == 3
    pauses = [
        min(busy["MaxDelaySeconds"], busy["IntervalSeconds"] * busy["BackoffRate"] ** n)
        for n in range(busy["MaxAttempts"])
    ]
    assert (
        busy["JitterStrategy"] == "FULL"
    )  # with full jitter, each pause is between 0 and its maximum
    assert sum(pauses) / 2 > LONGEST_INVOKE_S


def test_the_state_machine_reads_lines_and_sends_batches(definition: dict[str, Any]) -> None:
    state = definition["States"]["Prompts"]
    assert state["ItemProcessor"]["ProcessorConfig"] == {
        "Mode": "DISTRIBUTED",
        "ExecutionType": "STANDARD",
    }
    assert state["ItemReader"]["ReaderConfig"] == {"InputType": "JSONL"}
    assert state["ItemBatcher"]["MaxItemsPerBatch"] == 64
    assert state["ItemBatcher"]["MaxInputBytesPerBatch"] < 256 * 1024
    assert (state["MaxConcurrency"], state["ToleratedFailurePercentage"]) == (10, 0)
    assert state["ResultWriter"]["Parameters"] == {"Bucket": "results", "Prefix.$": "$.prefix"}
    task = state["ItemProcessor"]["States"]["Generate"]
    assert task["Parameters"] == {"FunctionName": SETTINGS["FunctionArn"], "Payload.$": "$"}


def test_a_replaced_file_fails_the_state_machine(definition: dict[str, Any]) -> None:
    states = definition["States"]
    assert definition["StartAt"] == "Unchanged"
    assert (states["Unchanged"]["Next"], states["Prompts"]["Next"]) == ("Prompts", "StillUnchanged")
    for name in ("Unchanged", "StillUnchanged"):  # before and during the read
        assert states[name]["Resource"] == "arn:aws:states:::aws-sdk:s3:headObject"
        assert states[name]["Parameters"] == {
            "Bucket.$": "$.bucket",
            "Key.$": "$.key",
            "IfMatch.$": "States.Format('\"{}\"', $.etag)",
        }
        assert "Catch" not in states[name]
        (retry,) = states[name]["Retry"]  # S3 throttling is retried
        assert {"S3.S3Exception", "S3.SdkClientException"} == {*retry["ErrorEquals"]}
        assert retry["MaxAttempts"] > 2


def test_the_definition_gets_exactly_its_substitutions(stack: Stack) -> None:
    machine = stack.nested("LargeFilesStack").properties("Batches")
    assert machine["DefinitionSubstitutions"].keys() == SETTINGS.keys()
    assert stack.nested("LargeFilesStack").parameters["Name"] == machine["StateMachineName"]


def test_the_linter_accepts_the_definition(definition: dict[str, Any], tmp_path: Path) -> None:
    def lint(states: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        machine = {"RoleArn": "arn:aws:iam::123456789012:role/x", "Definition": states}
        resource = {"Type": "AWS::StepFunctions::StateMachine", "Properties": machine}
        path = tmp_path / "machine.json"
        path.write_text(json.dumps({"Resources": {"Machine": resource}}))
        command = [SAM_PYTHON.with_name("cfn-lint"), "-r", "eu-central-1", "--", path]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    good = lint(definition)
    assert good.returncode == 0, good.stdout
    assert lint(definition | {"StartAt": "Nowhere", "States": {"X": {"Type": "None"}}}).returncode
