"""Each alarm fires in its case and not otherwise."""

import json
from functools import cache
from typing import Any

import pytest

from handler import telemetry
from tests.support.alarms import Alarm, Metric, Point
from tests.support.cloudformation import SAM_PYTHON, Stack

pytestmark = pytest.mark.skipif(
    not SAM_PYTHON.exists(), reason="SAM is not installed: `make test` does"
)

MINUTE, HOUR = 60.0, 3600.0
INVOKE = 900.0  # the longest timeout
ENDPOINTS = ("ApiErrors", "ApiThrottles", "RestApiErrors")


@cache
def everything() -> Stack:
    return Stack(
        Queue="standard", Files="yes", StateMachine="yes", RestApi="stream",
        AlarmTopicArn="arn:aws:sns:eu-central-1:123456789012:alarms",
    )  # fmt: skip


def alarms(stack: Stack) -> dict[str, Alarm]:
    return {n: Alarm(p) for n, p in stack.of_type("AWS::CloudWatch::Alarm").items()}


def main_alarms() -> dict[str, Alarm]:
    return alarms(everything().nested("AlarmStack"))


def endpoints() -> dict[str, Alarm]:
    return alarms(everything().nested("ApiAlarmStack"))


def batches() -> dict[str, Alarm]:
    return alarms(everything().nested("BatchStack").nested("AlarmStack"))


def points(
    alarm: Alarm, values: dict[float, float], late: float = MINUTE, name: str | None = None
) -> list[Point]:
    """Points of the alarm's only metric, or of the metric `name`, by time in seconds."""
    (metric,) = {m for m in alarm.metrics if name in (None, m.name)}
    return [Point(metric, at, value, at + late) for at, value in values.items()]


def outcome(alarm: Alarm, requests: dict[float, float], errors: dict[float, float]) -> list[Point]:
    """The function's metrics for its requests; each log line has both."""
    failed = {at: errors.get(at, 0) for at in requests}
    return points(alarm, requests, name="Requests") + points(alarm, failed, name="Errors")


def every(seconds: float, count: int, value: float = 1.0) -> dict[float, float]:
    return {seconds * (n + 1): value for n in range(count)}


def test_every_alarm_is_tested_here() -> None:
    assert main_alarms().keys() == {"Crashes", "FailedRequests", "Throttles", "UrlErrors"}
    assert endpoints().keys() == {*ENDPOINTS}
    assert batches().keys() == {
        "Crashes", "FailedMessages", "Throttles", "FailedFiles", "DeadLetters", "OldMessages",
        "FailedExecutions",
    }  # fmt: skip


def test_alarms_notify_the_topic_and_exist_for_each_part() -> None:
    for name, resource in everything().all_resources():
        if resource["Type"] == "AWS::CloudWatch::Alarm":
            assert resource["Properties"]["AlarmActions"] == [
                everything().parameters["AlarmTopicArn"]
            ], name
    quiet = Stack(Files="yes")
    assert "AlarmActions" not in quiet.nested("AlarmStack").properties("Crashes")
    assert "RestApiErrors" not in alarms(quiet.nested("ApiAlarmStack"))
    without = alarms(quiet.nested("BatchStack").nested("AlarmStack"))
    assert not {"DeadLetters", "OldMessages", "FailedExecutions"} & without.keys()


def test_alarms_use_the_metrics_that_the_function_writes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Context:
        function_name = "<Function>"

    report = telemetry.Report({"total": 1.0}, False, None)
    telemetry.log_invoke("direct", telemetry.Counts(), None, report, Context())
    line = json.loads(capsys.readouterr().err)
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    written = {
        Metric(
            directive["Namespace"], metric["Name"], tuple((d, line[d]) for d in sorted(dimensions))
        )
        for metric in directive["Metrics"]
        for dimensions in directive["Dimensions"]
    }
    watched = main_alarms()["FailedRequests"].metrics | batches()["FailedMessages"].metrics
    assert watched <= written
    assert all("FunctionName" in dimensions for dimensions in directive["Dimensions"])


def test_two_stacks_do_not_share_a_metric() -> None:
    own = {"FunctionName": "<Function>", "ApiId": "<Api>", "ApiName": "gpt2",
           "StateMachineArn": "<Batches>"}  # fmt: skip
    for alarm in [*main_alarms().values(), *endpoints().values(), *batches().values()]:
        for metric in alarm.metrics:
            ((name, value),) = metric.dimensions
            assert value == own.get(name) or value in {
                f"<{queue}.QueueName>" for queue in ("Failed", "Messages", "DeadLetters")
            }


@pytest.mark.parametrize("timeout", [29.0, INVOKE])
def test_crashes_fire_at_any_time(timeout: float) -> None:
    alarm = main_alarms()["Crashes"]
    assert alarm.fires(points(alarm, every(MINUTE, 3), late=timeout + MINUTE), HOUR)
    assert not alarm.fires(points(alarm, {MINUTE: 1}, late=timeout + MINUTE), HOUR)


def test_an_unavailable_model_fires_within_ten_minutes() -> None:
    alarm = main_alarms()["FailedRequests"]
    # The canary's proportion of the requests varies per minute.
    canary = outcome(alarm, every(MINUTE, 10, 100.0), every(MINUTE, 10, 7.0))
    assert alarm.fires(canary, 5 * MINUTE)
    lonely = outcome(alarm, every(2 * MINUTE, 3), every(2 * MINUTE, 3))
    assert alarm.fires(lonely, 10 * MINUTE)


def test_a_few_invalid_requests_do_not_fire() -> None:
    alarm = main_alarms()["FailedRequests"]
    assert not alarm.fires(outcome(alarm, every(MINUTE, 60, 100.0), every(MINUTE, 60, 3.0)), HOUR)
    assert not alarm.fires(outcome(alarm, every(MINUTE, 60, 0.0), {}), HOUR)
    once = outcome(alarm, every(MINUTE, 60), {MINUTE: 1.0, 9 * MINUTE: 1.0})
    assert not alarm.fires(once, HOUR)


@pytest.mark.parametrize("name", ["Throttles", "UrlErrors", *ENDPOINTS])
def test_persistent_rejections_fire(name: str) -> None:
    alarm = (endpoints() if name in ENDPOINTS else main_alarms())[name]
    assert alarm.fires(points(alarm, every(MINUTE, 3)), 5 * MINUTE)
    assert not alarm.fires(points(alarm, {MINUTE: 50}), HOUR)
    assert not alarm.fires(points(alarm, every(MINUTE, 60, 0.0)), 2 * HOUR)


def test_throttled_api_requests_are_counted_from_the_access_log() -> None:
    counted = everything().nested("ApiAlarmStack").properties("ThrottledRequests")
    (transformation,) = counted["MetricTransformations"]
    ((name, value),) = [(d["Key"], d["Value"]) for d in transformation["Dimensions"]]
    (metric,) = endpoints()["ApiThrottles"].metrics
    assert (transformation["MetricNamespace"], transformation["MetricName"]) == metric[:2]
    stage = everything().properties("ApiApiGatewayDefaultStage")["AccessLogSettings"]
    fields = json.loads(stage["Format"])
    assert stage["DestinationArn"] == "<AccessLogGroup.Arn>"
    assert counted["LogGroupName"] == "<AccessLogGroup>"
    assert metric.dimensions == ((name, "<Api>"),)
    assert fields[value.removeprefix("$.")] == "$context.apiId"
    assert counted["FilterPattern"] == '{ $.status = "429" }'
    assert fields["status"] == "$context.status"


def test_timeouts_of_batches_fire_although_metrics_are_late() -> None:
    alarm = batches()["Crashes"]
    at_once = dict.fromkeys([MINUTE, 90.0, 100.0, 110.0, 120.0], 1.0)
    assert alarm.fires(points(alarm, at_once, late=INVOKE + MINUTE), HOUR)
    assert alarm.fires(points(alarm, every(MINUTE, 5)), HOUR)


def test_a_large_file_that_needs_all_retries_does_not_fire() -> None:
    alarm = batches()["Crashes"]
    assert not alarm.fires(points(alarm, every(INVOKE, 3), late=INVOKE + MINUTE), 2 * HOUR)


def test_failed_messages_fire_by_their_proportion() -> None:
    alarm = batches()["FailedMessages"]
    assert alarm.fires(outcome(alarm, {INVOKE: 10.0}, {INVOKE: 10.0}), HOUR)
    assert alarm.fires(outcome(alarm, every(MINUTE, 30, 10.0), every(MINUTE, 30, 1.0)), HOUR)
    assert not alarm.fires(outcome(alarm, {INVOKE: 5000.0}, {INVOKE: 50.0}), HOUR)
    assert not alarm.fires(outcome(alarm, {INVOKE: 5000.0}, {}), HOUR)


def test_persistent_throttling_of_batches_fires() -> None:
    alarm = batches()["Throttles"]
    assert alarm.fires(points(alarm, every(MINUTE, 16)), HOUR)
    assert not alarm.fires(points(alarm, every(MINUTE, 4)), HOUR)


@pytest.mark.parametrize("name", ["FailedFiles", "DeadLetters", "FailedExecutions"])
def test_failed_work_fires_at_once(name: str) -> None:
    alarm = batches()[name]
    assert alarm.fires(points(alarm, {5 * MINUTE: 1.0}), 10 * MINUTE)
    assert not alarm.fires(points(alarm, every(5 * MINUTE, 12, 0.0)), HOUR)


def test_old_messages_fire_by_age() -> None:
    alarm = batches()["OldMessages"]
    queue = everything().nested("BatchStack").properties("Messages")
    retried = float(queue["VisibilityTimeout"]) * queue["RedrivePolicy"]["maxReceiveCount"]
    tried = {at: at for at in every(5 * MINUTE, int((retried + INVOKE) // 300))}
    assert not alarm.fires(points(alarm, tried), 24 * HOUR)
    waiting = {at: at for at in every(5 * MINUTE, 12 * 12)}
    assert alarm.fires(points(alarm, waiting), 24 * HOUR)
    assert float(queue["MessageRetentionPeriod"]) > 10 * HOUR


def test_missing_data_is_not_breaching_and_the_latest_points_count() -> None:
    """The evaluator passes CloudWatch's examples: 3 of 3 periods, evaluation range of 5."""
    metric: dict[str, Any] = {"Namespace": "n", "MetricName": "m", "Dimensions": []}
    rule = {"Statistic": "Sum", "Period": 60, "EvaluationPeriods": 3, "Threshold": 1,
            "ComparisonOperator": "GreaterThanOrEqualToThreshold",
            "TreatMissingData": "notBreaching"}  # fmt: skip
    states = {"0-X-X": "OK", "----0": "OK", "-----": "OK", "0XX-X": "ALARM", "--X--": "OK"}
    for pattern, expected in states.items():
        seen = [
            Point(Metric("n", "m", ()), 60.0 * n, float(sign == "X"), 0)
            for n, sign in enumerate(pattern, 1)
            if sign != "-"
        ]
        assert Alarm({**metric, **rule}).state(seen, 300) == expected, pattern
