"""The SAM template under AWS's own linters, and what they do not look at."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

SAM = ROOT / ".venv-dev" / "bin" / "sam"
TEMPLATES = ("template.yaml", "templates/volume.yaml", "templates/batch.yaml")


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short functions, which stay `{tag: value}`."""


def _function(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return {tag: loader.construct_scalar(node)}
    assert isinstance(node, yaml.SequenceNode)
    return {tag: loader.construct_sequence(node)}


_Loader.add_multi_constructor("!", _function)


def load(name: str) -> dict[str, Any]:
    loaded = yaml.load((ROOT / name).read_text(), _Loader)
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return load("template.yaml")


@pytest.fixture(scope="module")
def volume() -> dict[str, Any]:
    """Resources of the nested stack."""
    resources = load("templates/volume.yaml")["Resources"]
    assert isinstance(resources, dict)
    return resources


@pytest.mark.skipif(not SAM.exists(), reason="SAM is not installed: `make test` does")
@pytest.mark.parametrize("name", TEMPLATES)
def test_sam_finds_the_template_valid(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [SAM, "validate", "--lint", "--region", "eu-central-1", "-t", ROOT / name],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"SAM_CLI_TELEMETRY": "0", "HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not SAM.exists(), reason="SAM is not installed: `make test` does")
@pytest.mark.parametrize("name", TEMPLATES)
def test_cfn_lint_finds_nothing(name: str) -> None:
    lint = [SAM.with_name("cfn-lint"), "-r", "eu-central-1", "--", ROOT / name]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_api_is_closed_to_requests_that_are_not_signed(template: dict[str, Any]) -> None:
    auth = template["Resources"]["Api"]["Properties"]["Auth"]
    assert auth == {"EnableIamAuthorizer": True, "DefaultAuthorizer": "AWS_IAM"}
    for event in template["Resources"]["Function"]["Properties"]["Events"].values():
        assert "Auth" not in event["Properties"]


def test_the_api_is_throttled(template: dict[str, Any]) -> None:
    limits = template["Resources"]["Api"]["Properties"]["DefaultRouteSettings"]
    assert limits["ThrottlingRateLimit"] <= 100


def test_the_function_ends_before_the_api_gives_up(template: dict[str, Any]) -> None:
    assert template["Parameters"]["Timeout"]["Default"] < 30


def test_every_route_of_the_api_is_one_of_the_handlers(template: dict[str, Any]) -> None:
    from handler.events import ROUTES

    routes = [
        (event["Properties"]["Path"], event["Properties"]["Method"])
        for event in template["Resources"]["Function"]["Properties"]["Events"].values()
    ]
    assert len(routes) == len(ROUTES)
    assert all(method in ROUTES[path] for path, method in routes)


def test_what_the_dockerfile_copies_is_let_through_by_dockerignore() -> None:
    copied = [
        line.split()[1].replace("${MODEL}", "models/none")
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
    ]
    ignore = (ROOT / ".dockerignore").read_text().split()
    assert len(copied) > 5
    for source in copied:
        assert {f"!{source}", f"!{Path(source).parent}"} & {*ignore}, source
        assert (ROOT / source).exists()


def test_the_function_url_is_closed_to_requests_that_are_not_signed(
    template: dict[str, Any],
) -> None:
    url = template["Resources"]["Function"]["Properties"]["FunctionUrlConfig"]
    assert url["AuthType"] == "AWS_IAM"


def test_snapstart_is_refused_with_what_it_does_not_work_with(template: dict[str, Any]) -> None:
    rule = template["Rules"]["SnapStartStandsAlone"]
    assert rule["RuleCondition"] == {"Equals": [{"Ref": "SnapStart"}, "PublishedVersions"]}
    asserted = [assertion["Assert"] for assertion in rule["Assertions"]]
    assert asserted == [
        {"Equals": [{"Ref": "Volume"}, "none"]},
        {"Equals": [{"Ref": "ProvisionedConcurrency"}, "0"]},
        {"Equals": [{"Ref": "EphemeralStorage"}, "512"]},
    ]


def test_every_setting_of_the_template_is_one_that_the_function_reads(
    template: dict[str, Any],
) -> None:
    variables = template["Resources"]["Function"]["Properties"]["Environment"]["Variables"]
    read = (ROOT / "handler" / "settings.py").read_text()
    assert variables["GPT2_MODEL_DIR"] == "/mnt/gpt2"
    assert all(f'"{name}"' in read for name in variables)


def test_both_kinds_of_volume_are_encrypted_and_used_as_an_ordinary_user(
    volume: dict[str, Any],
) -> None:
    assert volume["FileSystem"]["Properties"]["Encrypted"] is True
    (encryption,) = volume["Bucket"]["Properties"]["BucketEncryption"][
        "ServerSideEncryptionConfiguration"
    ]
    assert encryption["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    for name in ("AccessPoint", "S3AccessPoint"):
        assert int(volume[name]["Properties"]["PosixUser"]["Uid"]) > 0


def test_only_the_function_reaches_the_volume_and_nothing_the_function(
    volume: dict[str, Any],
) -> None:
    (ingress,) = volume["VolumeSecurityGroup"]["Properties"]["SecurityGroupIngress"]
    assert ingress["SourceSecurityGroupId"] == {"Ref": "FunctionSecurityGroup"}
    assert (ingress["FromPort"], ingress["ToPort"], "CidrIp" in ingress) == (2049, 2049, False)
    assert "SecurityGroupIngress" not in volume["FunctionSecurityGroup"]["Properties"]
    targets = [r for r in volume.values() if r["Type"].endswith("::MountTarget")]
    assert len(targets) == 4
    for target in targets:
        assert target["Properties"]["SecurityGroups"] == [{"Ref": "VolumeSecurityGroup"}]


def test_what_belongs_to_one_kind_of_volume_is_not_made_for_the_other(
    volume: dict[str, Any],
) -> None:
    for name, resource in volume.items():
        kind = resource["Type"]
        if not kind.startswith("AWS::EC2::"):
            assert resource["Condition"] == ("IsEfs" if "::EFS::" in kind else "IsS3Files"), name


def test_the_bucket_is_private_versioned_and_outlives_its_stack(volume: dict[str, Any]) -> None:
    bucket = volume["Bucket"]
    assert all(bucket["Properties"]["PublicAccessBlockConfiguration"].values())
    assert bucket["Properties"]["VersioningConfiguration"]["Status"] == "Enabled"
    assert bucket["UpdateReplacePolicy"] == "Retain"


def statements(template: dict[str, Any], volume: dict[str, Any]) -> list[dict[str, Any]]:
    """Every statement that allows something."""
    policies = template["Resources"]["Function"]["Properties"]["Policies"]
    found = [s for policy in policies for s in policy["If"][1]["Statement"]]
    (policy,) = volume["SynchronizationRole"]["Properties"]["Policies"]
    return [*found, *policy["PolicyDocument"]["Statement"]]


def test_nothing_that_is_allowed_is_a_star(
    template: dict[str, Any], volume: dict[str, Any]
) -> None:
    allowed = statements(template, volume)
    assert len(allowed) == 8
    for statement in allowed:
        assert statement["Effect"] == "Allow"
        actions = statement["Action"]
        if isinstance(actions, dict):
            actions = [action for choice in actions["If"][1:] for action in choice]
        for action in [actions] if isinstance(actions, str) else actions:
            assert "*" not in action
        assert statement["Resource"] != "*"


def test_only_s3_files_may_take_the_role_that_writes_into_the_bucket(
    volume: dict[str, Any],
) -> None:
    trust = volume["SynchronizationRole"]["Properties"]["AssumeRolePolicyDocument"]
    (statement,) = trust["Statement"]
    assert statement["Principal"] == {"Service": "elasticfilesystem.amazonaws.com"}
    assert statement["Condition"]["StringEquals"]["aws:SourceAccount"] == {"Ref": "AWS::AccountId"}


def test_all_logs_end(template: dict[str, Any]) -> None:
    groups = [
        resource["Properties"]
        for resource in template["Resources"].values()
        if resource["Type"] == "AWS::Logs::LogGroup"
    ]
    assert len(groups) == 2
    assert all(group["RetentionInDays"] == {"Ref": "LogRetentionInDays"} for group in groups)
