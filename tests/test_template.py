"""The SAM template under AWS's own linters, and what they do not look at."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

SAM = ROOT / ".venv-dev" / "bin" / "sam"


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short functions, which stay `{tag: value}`."""


def _function(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return {tag: loader.construct_scalar(node)}
    assert isinstance(node, yaml.SequenceNode)
    return {tag: loader.construct_sequence(node)}


_Loader.add_multi_constructor("!", _function)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    loaded = yaml.load((ROOT / "template.yaml").read_text(), _Loader)
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.skipif(not SAM.exists(), reason="SAM is not installed: `make test` does")
def test_sam_finds_the_template_valid(tmp_path: Path) -> None:
    done = subprocess.run(
        [SAM, "validate", "--lint", "--region", "eu-central-1", "-t", ROOT / "template.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"SAM_CLI_TELEMETRY": "0", "HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not SAM.exists(), reason="SAM is not installed: `make test` does")
def test_cfn_lint_finds_nothing() -> None:
    lint = [SAM.with_name("cfn-lint"), "-r", "eu-central-1", "--", ROOT / "template.yaml"]
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


def test_the_volume_is_encrypted_and_only_the_function_reaches_it(
    template: dict[str, Any],
) -> None:
    resources = template["Resources"]
    assert resources["FileSystem"]["Properties"]["Encrypted"] is True
    (ingress,) = resources["VolumeSecurityGroup"]["Properties"]["SecurityGroupIngress"]
    assert ingress["SourceSecurityGroupId"] == {"Ref": "FunctionSecurityGroup"}
    assert "CidrIp" not in ingress
    point = resources["AccessPoint"]["Properties"]
    assert int(point["PosixUser"]["Uid"]) > 0


def test_nothing_that_is_allowed_is_a_star(template: dict[str, Any]) -> None:
    policies = template["Resources"]["Function"]["Properties"]["Policies"]
    statements = [s for policy in policies for s in policy["If"][1]["Statement"]]
    assert len(statements) == 3
    for statement in statements:
        assert statement["Effect"] == "Allow"
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert "*" not in action
        assert statement["Resource"] != "*"


def test_all_logs_end(template: dict[str, Any]) -> None:
    groups = [
        resource["Properties"]
        for resource in template["Resources"].values()
        if resource["Type"] == "AWS::Logs::LogGroup"
    ]
    assert len(groups) == 2
    assert all(group["RetentionInDays"] == {"Ref": "LogRetentionInDays"} for group in groups)
