"""The stack for queues and files: what linters do not look at."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.test_template import SAM, load

TIMES_THE_TIMEOUT = 6  # AWS Lambda Developer Guide, "Configuring a queue to use with Lambda"
SETTINGS = {
    "Partition": "aws",
    "FunctionArn": "arn:aws:lambda:eu-central-1:123456789012:function:gpt2:live",
    "ResultsBucket": "results",
    "MaximumConcurrency": "10",
    "ItemsPerBatch": "64",
    "Attempts": "3",
    "ToleratedFailurePercentage": "0",
}


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    found = load("templates/batch.yaml")["Resources"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def definition() -> dict[str, Any]:
    """The state machine as CloudFormation fills it in."""
    text = (ROOT / "templates" / "batches.asl.yaml").read_text()
    for name, value in SETTINGS.items():
        assert f"${{{name}}}" in text
        text = text.replace(f"${{{name}}}", value)
    assert "${" not in text
    filled = yaml.safe_load(text)
    assert isinstance(filled, dict)
    return filled


def of_type(resources: dict[str, Any], kind: str) -> dict[str, Any]:
    return {n: r["Properties"] for n, r in resources.items() if r["Type"] == kind}


def test_a_message_stays_hidden_for_six_times_the_timeout(resources: dict[str, Any]) -> None:
    timeout = resources["Function"]["Properties"]["Timeout"]
    assert timeout <= 900
    hidden = resources["Messages"]["Properties"]["VisibilityTimeout"]
    assert hidden >= TIMES_THE_TIMEOUT * timeout


def test_the_queue_hears_of_each_message_that_failed(resources: dict[str, Any]) -> None:
    poll = resources["Poll"]["Properties"]
    assert poll["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert poll["ScalingConfig"]["MaximumConcurrency"] == {"Ref": "MaximumConcurrency"}
    assert poll["BatchSize"] <= 10  # the most of a FIFO queue


def test_what_cannot_be_done_is_kept(resources: dict[str, Any]) -> None:
    redrive = resources["Messages"]["Properties"]["RedrivePolicy"]
    assert redrive["deadLetterTargetArn"] == {"GetAtt": "DeadLetters.Arn"}
    assert redrive["maxReceiveCount"] > 1
    for name in ("DeadLetters", "Failed"):
        assert resources[name]["Properties"]["MessageRetentionPeriod"] == 14 * 24 * 3600
    queues = [resources[name]["Properties"] for name in ("Messages", "DeadLetters")]
    assert queues[0]["FifoQueue"] == queues[1]["FifoQueue"]
    failed = resources["Function"]["Properties"]["EventInvokeConfig"]
    assert failed["DestinationConfig"]["OnFailure"]["Destination"] == {"GetAtt": "Failed.Arn"}
    (target,) = resources["NewFile"]["Properties"]["Targets"]
    assert target["DeadLetterConfig"]["Arn"] == {"GetAtt": "Failed.Arn"}


def test_results_start_nothing(resources: dict[str, Any]) -> None:
    pattern = resources["NewFile"]["Properties"]["EventPattern"]
    assert pattern["detail"]["bucket"]["name"] == [{"Ref": "Prompts"}]
    settings = resources["Function"]["Properties"]["Environment"]["Variables"]
    assert settings["GPT2_RESULTS"] == {"Sub": "s3://${Results}/results"}
    assert "NotificationConfiguration" not in resources["Results"]["Properties"]


def test_only_files_that_the_function_reads_start_it(resources: dict[str, Any]) -> None:
    from handler.batch_events import S3_FILES

    pattern = resources["NewFile"]["Properties"]["EventPattern"]
    assert {rule["suffix"] for rule in pattern["detail"]["object"]["key"]} == set(S3_FILES)


def test_nobody_reaches_the_function_from_outside(resources: dict[str, Any]) -> None:
    function = resources["Function"]["Properties"]
    assert not {"FunctionUrlConfig", "Events"} & function.keys()
    for permission in of_type(resources, "AWS::Lambda::Permission").values():
        assert permission["SourceArn"]


def test_buckets_and_queues_are_encrypted_private_and_not_for_ever(
    resources: dict[str, Any],
) -> None:
    buckets = of_type(resources, "AWS::S3::Bucket")
    assert set(buckets) == {"Prompts", "Results"}
    for bucket in buckets.values():
        assert bucket["BucketEncryption"]
        assert all(bucket["PublicAccessBlockConfiguration"].values())
        (rule,) = bucket["LifecycleConfiguration"]["Rules"]
        assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
        assert rule["ExpirationInDays"] == {"Ref": "ResultsDays"}
    assert all(q["SqsManagedSseEnabled"] for q in of_type(resources, "AWS::SQS::Queue").values())


def statements(resources: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for policy in resources["Function"]["Properties"]["Policies"]:
        found += (policy["If"][1] if "If" in policy else policy)["Statement"]
    for role in of_type(resources, "AWS::IAM::Role").values():
        for policy in role["Policies"]:
            found += policy["PolicyDocument"]["Statement"]
    return found


def test_nothing_that_is_allowed_is_a_star(resources: dict[str, Any]) -> None:
    allowed = statements(resources)
    assert len(allowed) == 13
    for statement in allowed:
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert "*" not in action
        assert statement["Resource"] != "*"


def test_every_part_has_its_switch(resources: dict[str, Any]) -> None:
    switched = {"HasQueue": {"Messages", "DeadLetters", "Poll"},
                "HasFiles": {"Prompts", "NewFile"},
                "HasStateMachine": {"Batches", "BatchesRole", "StateMachineLogs"}}  # fmt: skip
    for condition, names in switched.items():
        assert all(resources[name]["Condition"] == condition for name in names)


def test_somebody_is_told_of_what_goes_wrong(resources: dict[str, Any]) -> None:
    alarms = of_type(resources, "AWS::CloudWatch::Alarm")
    watched = {(alarm["Namespace"], alarm["MetricName"]) for alarm in alarms.values()}
    assert watched == {
        ("AWS/Lambda", "Errors"),
        ("AWS/Lambda", "Throttles"),
        ("AWS/Lambda", "Duration"),
        ("AWS/SQS", "ApproximateNumberOfMessagesVisible"),
        ("AWS/SQS", "ApproximateAgeOfOldestMessage"),
    }
    timeout = resources["Function"]["Properties"]["Timeout"]
    assert alarms["SlowInvokes"]["Threshold"] < 1000 * timeout
    for alarm in alarms.values():
        assert alarm["AlarmActions"]["If"][0] == "HasTopic"


def test_every_setting_is_one_that_the_function_reads(resources: dict[str, Any]) -> None:
    variables = resources["Function"]["Properties"]["Environment"]["Variables"]
    read = (ROOT / "handler" / "settings.py").read_text()
    assert all(f'"{name}"' in read for name in variables)


def test_the_stack_gets_all_its_parameters_and_no_other() -> None:
    main = load("template.yaml")["Resources"]["BatchStack"]["Properties"]
    assert main["Location"] == "templates/batch.yaml"
    assert set(main["Parameters"]) == set(load("templates/batch.yaml")["Parameters"])


def test_the_state_machine_reads_lines_and_hands_over_batches(definition: dict[str, Any]) -> None:
    state = definition["States"]["Prompts"]
    assert state["ItemProcessor"]["ProcessorConfig"] == {
        "Mode": "DISTRIBUTED",
        "ExecutionType": "STANDARD",
    }
    assert state["ItemReader"]["ReaderConfig"] == {"InputType": "JSONL"}
    assert state["ItemBatcher"]["MaxItemsPerBatch"] == 64
    assert state["ItemBatcher"]["MaxInputBytesPerBatch"] < 256 * 1024
    assert (state["MaxConcurrency"], state["ToleratedFailurePercentage"]) == (10, 0)
    assert state["ResultWriter"]["Parameters"]["Bucket"] == "results"
    task = state["ItemProcessor"]["States"]["Generate"]
    assert task["Parameters"] == {"FunctionName": SETTINGS["FunctionArn"], "Payload.$": "$"}
    assert task["Retry"][0]["MaxAttempts"] == 3


def test_the_state_machine_may_start_its_own_executions(resources: dict[str, Any]) -> None:
    (policy,) = resources["BatchesRole"]["Properties"]["Policies"]
    (start,) = (
        statement
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Action"] == "states:StartExecution"
    )
    name = resources["Batches"]["Properties"]["Name"]["Sub"]
    assert start["Resource"]["Sub"].endswith(f":stateMachine:{name}")


@pytest.mark.skipif(not SAM.exists(), reason="SAM is not installed: `make test` does")
def test_the_definition_is_one_that_the_linter_knows(
    definition: dict[str, Any], tmp_path: Path
) -> None:
    def lint(states: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        machine = {"RoleArn": "arn:aws:iam::123456789012:role/x", "Definition": states}
        resource = {"Type": "AWS::StepFunctions::StateMachine", "Properties": machine}
        path = tmp_path / "machine.json"
        path.write_text(json.dumps({"Resources": {"Machine": resource}}))
        command = [SAM.with_name("cfn-lint"), "-r", "eu-central-1", "--", path]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    good = lint(definition)
    assert good.returncode == 0, good.stdout
    assert lint(definition | {"StartAt": "Nowhere", "States": {"X": {"Type": "None"}}}).returncode
