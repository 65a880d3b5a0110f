"""A version of a function is published if, and only if, the function changes.

The alias `live`, used by all endpoints and queues, points to the version. CloudFormation replaces a
version if its logical id or description changes. Lambda does not publish a version of an unchanged
function, and the deployment fails.
"""

import itertools
import json
from typing import Any

import pytest

from tests.support.cloudformation import ROOT_TEMPLATE, SAM_PYTHON, Stack, translate_each

pytestmark = pytest.mark.skipif(
    not SAM_PYTHON.exists(), reason="SAM is not installed: `make test` does"
)

MAX_DESCRIPTION = 256  # AWS CloudFormation Template Reference, AWS::Lambda::Version
SECRETS = {"HfToken": "hf_0123456789", "ApiKey": "an-api-key-of-twenty-letters"}
# Each parameter with a value other than its default.
CHANGED: dict[str, Any] = {
    **SECRETS,
    "Architecture": "arm64",
    "MemorySize": 3008,
    "Timeout": 900,
    "ReservedConcurrency": 5,
    "Canary": "true",
    "Tracing": "Active",
    "LogRetentionInDays": 7,
    "AlarmTopicArn": "arn:aws:sns:eu-central-1:123456789012:alarms",
    "Model": "models/mine",
    "ModelUri": "s3://models/gpt2",
    "ModelSha256": 64 * "a",
    "KmsKeyArns": "arn:aws:kms:eu-central-1:123456789012:key/a",
    "EphemeralStorage": 1024,
    "Preload": "init",
    "SnapStart": "PublishedVersions",
    "ProvisionedConcurrency": 1,
    "Volume": "EFS",
    "VpcId": "vpc-11111111",
    "SubnetA": "subnet-11111111",
    "SubnetB": "subnet-22222222",
    "UrlAccess": "iam-stream",
    "RestApi": "stream",
    "SecretsVersion": "2",
    "BasePath": "/gpt2",
    "MaxPromptTokens": "10",
    "MaxNewTokens": "10",
    "Queue": "standard",
    "SourceBucket": "uploads",
    "SourceTopicArn": "arn:aws:sns:eu-central-1:123456789012:uploads",
    "Files": "yes",
    "StateMachine": "yes",
    "MaximumConcurrency": 7,
    "BatchReservedConcurrency": 7,
    "ItemsPerBatch": 7,
    "Attempts": 7,
    "ToleratedFailurePercentage": 7,
    "ResultsDays": 7,
    "BatchMemorySize": 1769,
}
BATCHES = {"Queue": "standard", "Files": "yes"}
FULL = {
    "Architecture": "arm64",
    "MemorySize": 10240,
    "Timeout": 900,
    "EphemeralStorage": 10240,
    "Preload": "init",
    "SnapStart": "PublishedVersions",
    "Tracing": "Active",
    "UrlAccess": "public-stream",
    "RestApi": "stream",
    "SecretsVersion": 6 * "9",
    "BasePath": "/" + 15 * "b",
    "MaxPromptTokens": "9999",
    "MaxNewTokens": "9999",
    "Volume": "S3Files",
    "VpcId": "vpc-" + 17 * "1",
    "SubnetA": "subnet-" + 17 * "1",
    "SubnetB": "subnet-" + 17 * "2",
    "ModelSha256": 64 * "f",
    "ModelUri": "s3://" + 63 * "m" + "/abc",
    **SECRETS,
}


def main(**parameters: Any) -> Stack:
    return Stack(**parameters)


def batch(**parameters: Any) -> Stack:
    return Stack(**BATCHES | parameters).nested("BatchStack")


def version_of(stack: Stack) -> tuple[str, str]:
    """The logical id and description of the version."""
    ((name, properties),) = stack.of_type("AWS::Lambda::Version").items()
    return name, properties["Description"]


def configuration(stack: Stack) -> str:
    """The content of a version, which does not include reserved concurrency."""
    found = dict(stack.properties("Function"))
    found.pop("ReservedConcurrentExecutions", None)
    return json.dumps(found, sort_keys=True)


def variants() -> list[dict[str, Any]]:
    """The defaults, each parameter changed, and each pair changed."""
    changed = [dict(some) for n in range(3) for some in itertools.combinations(CHANGED.items(), n)]
    return [*changed, CHANGED, *({**CHANGED, name: "none"} for name in ("Volume", "RestApi"))]


def test_every_parameter_is_tested_here() -> None:
    assert CHANGED.keys() == Stack().parameters.keys()
    assert all(Stack().parameters[name] != str(value) for name, value in CHANGED.items())


def test_the_transform_depends_only_on_canary() -> None:
    tried = [{}, *({name: str(value)} for name, value in CHANGED.items() if name != "Canary")]
    first, *rest = translate_each(ROOT_TEMPLATE, tried)
    assert len(rest) == len(CHANGED) - 1
    assert all(template == first for template in rest)


@pytest.mark.parametrize("deploy", [main, batch])
def test_a_version_is_published_only_when_the_function_changes(deploy: Any) -> None:
    versions: dict[str, set[Any]] = {}
    functions: dict[Any, set[str]] = {}
    for parameters in variants():
        stack = deploy(**parameters)
        version, function = version_of(stack), configuration(stack)
        versions.setdefault(function, set()).add(version)
        functions.setdefault(version, set()).add(function)
    assert [
        f for f in functions.values() if len(f) > 1
    ] == []  # the alias would keep the old version
    assert [v for v in versions.values() if len(v) > 1] == []  # the deployment would fail
    assert len(versions) > 50


def test_each_parameter_changes_the_expected_functions() -> None:
    def changing(deploy: Any) -> set[str]:
        return {
            name
            for name, value in CHANGED.items()
            if version_of(deploy(**{name: value})) != version_of(deploy())
        }

    both = {"Architecture", "EphemeralStorage", "HfToken", "MaxNewTokens", "MaxPromptTokens"}
    both |= {"Model", "ModelSha256", "ModelUri", "Tracing"}
    assert changing(main) == both | {
        "ApiKey", "BasePath", "MemorySize", "Preload", "RestApi", "SnapStart", "Timeout",
        "UrlAccess", "Volume",
    }  # fmt: skip
    assert changing(batch) == both | {"BatchMemorySize", "StateMachine"}


@pytest.mark.parametrize("name", ["SubnetA", "SubnetB"])
def test_changing_the_volumes_subnet_publishes_a_version(name: str) -> None:
    before = main(**FULL)
    after = main(**FULL | {name: "subnet-" + 17 * "3"})
    assert configuration(before) != configuration(after)
    assert version_of(before) != version_of(after)


@pytest.mark.parametrize("deploy", [main, batch])
def test_a_new_secrets_version_publishes_a_version(deploy: Any) -> None:
    before, after = (deploy(**SECRETS, SecretsVersion=version) for version in ("1", "2"))
    assert version_of(before) != version_of(after)
    assert configuration(before) != configuration(after)
    without = [deploy(SecretsVersion=version) for version in ("1", "2")]
    assert version_of(without[0]) == version_of(without[1])


@pytest.mark.parametrize("deploy", [main, batch])
def test_the_longest_description_is_short_enough_and_holds_no_secret(deploy: Any) -> None:
    stack = deploy(**FULL)
    limits = Stack().template["Parameters"]
    assert len(FULL["ModelUri"]) == limits["ModelUri"]["MaxLength"]
    assert len(FULL["BasePath"]) == limits["BasePath"]["MaxLength"]
    assert len(FULL["SecretsVersion"]) == limits["SecretsVersion"]["MaxLength"]
    allowed = {name for name, value in FULL.items() if name in Stack(**{name: value}).problems()}
    assert not allowed
    description = version_of(stack)[1]
    assert len(description) <= MAX_DESCRIPTION
    assert not any(secret in description for secret in SECRETS.values())


def test_old_versions_are_deleted_after_the_alias_has_moved() -> None:
    for stack in (main(), batch()):
        (version,) = (r for r in stack.resources.values() if r["Type"] == "AWS::Lambda::Version")
        assert version["DeletionPolicy"] == "Delete"


def test_a_canary_has_alarms_that_do_not_depend_on_the_alias() -> None:
    assert not Stack().of_type("AWS::CodeDeploy::DeploymentGroup")
    stack = Stack(Canary="true")
    (group,) = stack.of_type("AWS::CodeDeploy::DeploymentGroup").values()
    guards = {alarm["Name"] for alarm in group["AlarmConfiguration"]["Alarms"]}
    alarms = stack.nested("AlarmStack")
    assert guards == {"<Crashes>", "<FailedRequests>"}
    assert {guard.strip("<>") for guard in guards} <= alarms.of_type(
        "AWS::CloudWatch::Alarm"
    ).keys()
    # The alias depends on the deployment group, which depends on these alarms.
    assert set(alarms.parameters.values()) <= {"<Function>", ""}
    alias = stack.resources["FunctionAliaslive"]
    assert "CodeDeployLambdaAliasUpdate" in alias["UpdatePolicy"]
