"""The SAM templates: AWS's linters, and the resources of the main stack."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.cloudformation import SAM_PYTHON, Stack
from tests.support.docker_api import docker_api

pytestmark = pytest.mark.skipif(
    not SAM_PYTHON.exists(), reason="SAM is not installed: `make test` does"
)

SAM = SAM_PYTHON.with_name("sam")
TEMPLATES = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "template.yaml", *(ROOT / "templates").glob("*.yaml")]
    if not path.name.endswith(".asl.yaml")
)
SAM_TEMPLATES = [name for name in TEMPLATES if "\nTransform:" in (ROOT / name).read_text()]
MAX_LINES = 400
NETWORK = {"VpcId": "vpc-11111111", "SubnetA": "subnet-11111111", "SubnetB": "subnet-22222222"}
PUBLIC = {"UrlAccess": "public", "ApiKey": "an-api-key-of-twenty-letters", "ReservedConcurrency": 5}


def environment(stack: Stack) -> dict[str, str]:
    """The environment variables of a stack's function."""
    variables = stack.properties("Function")["Environment"]["Variables"]
    assert isinstance(variables, dict)
    return variables


@pytest.fixture(scope="module")
def volume() -> dict[str, Any]:
    """The resources of both kinds of volume."""
    return {
        name: resource
        for kind in ("EFS", "S3Files")
        for name, resource in Stack(Volume=kind, **NETWORK).nested("VolumeStack").resources.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", SAM_TEMPLATES)
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


def test_cfn_lint_accepts_the_templates() -> None:
    paths = [ROOT / name for name in TEMPLATES]
    lint = [SAM.with_name("cfn-lint"), "-r", "eu-central-1", "--", *paths]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [*TEMPLATES, "templates/batches.asl.yaml"])
def test_templates_are_short(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= MAX_LINES


def test_every_nested_stack_gets_exactly_its_parameters() -> None:
    stack = Stack(Queue="standard", Files="yes", StateMachine="yes", RestApi="stream",
                  Volume="EFS", **NETWORK)  # fmt: skip
    seen = {stack.path}

    def check(parent: Stack) -> None:
        for name, properties in parent.of_type("AWS::CloudFormation::Stack").items():
            nested = parent.nested(name)
            assert properties["Parameters"].keys() == nested.parameters.keys(), name
            assert not nested.problems(), name
            seen.add(nested.path)
            check(nested)

    check(stack)
    assert {str(path.relative_to(ROOT)) for path in seen} == {*TEMPLATES}


SWITCHED = {
    "RestUrl": {"RestApi": "stream"},
    "PopulateFunction": {"Volume": "EFS", **NETWORK},
    "VolumeBucket": {"Volume": "S3Files", **NETWORK},
    "BatchFunctionAlias": {"Queue": "fifo"},
    "QueueUrl": {"Queue": "standard"},
    "QueueArn": {"Queue": "fifo"},
    "DeadLetterQueueUrl": {"Queue": "standard"},
    "FailedQueueUrl": {"Files": "yes"},
    "StateMachineArn": {"Files": "yes", "StateMachine": "yes"},
    "PromptsBucket": {"Files": "yes"},
    "ResultsBucket": {"Queue": "standard"},
}


def test_every_output_has_its_condition_and_a_value() -> None:
    outputs = Stack().template["Outputs"]
    switched = {name for name, output in outputs.items() if "Condition" in output}
    assert switched == SWITCHED.keys()
    for name in outputs.keys() - switched:
        assert Stack().output(name)
    for name, parameters in SWITCHED.items():
        assert not Stack().holds(outputs[name]["Condition"])
        stack = Stack(**parameters)
        assert stack.holds(outputs[name]["Condition"])
        assert str(stack.output(name)).strip("<>"), name


def test_the_guide_lists_the_outputs_that_its_commands_use() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    outputs = {name.upper(): name for name in Stack().template["Outputs"]}
    used = {name.replace("_", "") for name in re.findall(r"\"\$\{?([A-Z_]+)", guide)}
    own = {"AWSACCESSKEYID", "KEY", "SOURCEBUCKET", "TOPICARN", "EXECUTION"}
    assert used - own <= outputs.keys()
    assert {"QUEUEARN", "POPULATEFUNCTION"} <= used


def test_the_defaults_work_in_a_new_account() -> None:
    stack = Stack(Queue="standard", Files="yes", StateMachine="yes")
    assert not stack.problems()
    functions = [r["Properties"] for _, r in stack.all_resources()
                 if r["Type"] == "AWS::Lambda::Function"]  # fmt: skip
    assert len(functions) == 2
    for function in functions:
        assert int(function["MemorySize"]) <= 3008
        assert "ReservedConcurrentExecutions" not in function
    assert 2 * int(stack.parameters["MaximumConcurrency"]) <= 10


def test_each_function_has_its_own_reserved_concurrency() -> None:
    stack = Stack(Queue="standard", ReservedConcurrency=3, BatchReservedConcurrency=0)
    assert stack.properties("Function")["ReservedConcurrentExecutions"] == "3"
    batch = stack.nested("BatchStack").properties("Function")
    assert batch["ReservedConcurrentExecutions"] == "0"


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"SnapStart": "PublishedVersions", "Volume": "EFS", **NETWORK}, "a volume"),
        ({"SnapStart": "PublishedVersions", "ProvisionedConcurrency": 1}, "provisioned"),
        ({"SnapStart": "PublishedVersions", "EphemeralStorage": 1024}, "512 MB"),
        ({"Volume": "EFS"}, "VpcId"),
        ({"Volume": "EFS", **NETWORK, "SubnetB": NETWORK["SubnetA"]}, "SubnetA and SubnetB"),
        ({"Volume": "EFS", **NETWORK, "Model": "models/mine"}, "Model in the image"),
        ({"Volume": "S3Files", **NETWORK, "Queue": "fifo"}, "Batches read ModelUri"),
        ({"Volume": "EFS", **NETWORK, "Files": "yes"}, "Batches read ModelUri"),
        ({"UrlAccess": "public", "ReservedConcurrency": 5}, "ApiKey"),
        ({**PUBLIC, "UrlAccess": "public-stream", "ReservedConcurrency": -1}, "ReservedConc"),
        ({"StateMachine": "yes"}, "Files"),
        ({"SourceBucket": "uploads"}, "Queue"),
        ({"SourceTopicArn": "arn:aws:sns:eu-central-1:1:t", "Files": "yes"}, "Queue"),
        ({"SourceBucket": "uploads", "Queue": "fifo"}, "standard queues"),
        ({"ModelUri": "s3://" + 70 * "m"}, "ModelUri"),
        ({"ModelUri": "models/gpt2"}, "ModelUri"),
        ({"ApiKey": "short"}, "ApiKey"),
        ({"BasePath": "gpt2"}, "BasePath"),
        ({"Model": "../secrets"}, "Model"),
    ],
)
def test_invalid_parameter_combinations_fail_before_deployment(
    parameters: dict[str, Any], problem: str
) -> None:
    assert [found for found in Stack(**parameters).problems() if problem in found]


@pytest.mark.parametrize(
    "parameters",
    [
        {"SnapStart": "PublishedVersions", "Model": "models/mine"},
        {"Volume": "S3Files", **NETWORK, "ProvisionedConcurrency": 2, "Preload": "init"},
        {**PUBLIC, "RestApi": "stream", "BasePath": "/a/b", "MaxNewTokens": "64"},
        {"Queue": "standard", "SourceBucket": "uploads", "ModelUri": "s3://models/gpt2/"},
        {"Volume": "EFS", **NETWORK, "Files": "yes", "ModelUri": "s3://models/gpt2"},
        {"ModelUri": "hf://openai-community/gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e"},
    ],
)
def test_valid_parameter_combinations_are_accepted(parameters: dict[str, Any]) -> None:
    assert Stack(**parameters).problems() == []


def test_the_api_rejects_unsigned_requests() -> None:
    paths = Stack().properties("Api")["Body"]["paths"]
    assert paths.keys() == {"/", "/{proxy+}"}
    for path in paths.values():
        (operation,) = path.values()
        assert operation["security"] == [{"AWS_IAM": []}]


def test_the_api_passes_every_route_and_method_to_the_function() -> None:
    paths = Stack().properties("Api")["Body"]["paths"]
    for path in paths.values():
        assert path.keys() == {"x-amazon-apigateway-any-method"}


def test_the_api_is_throttled() -> None:
    stage = Stack().properties("ApiApiGatewayDefaultStage")
    assert stage["DefaultRouteSettings"]["ThrottlingRateLimit"] <= 100


def test_the_access_log_has_caller_and_error_but_no_request_data() -> None:
    stage = Stack().properties("ApiApiGatewayDefaultStage")
    fields = json.loads(stage["AccessLogSettings"]["Format"])
    assert fields["caller"] == "$context.identity.userArn"
    assert fields["integrationError"] == "$context.integration.error"
    assert not {"$context.path", "$context.identity.userAgent"} & set(fields.values())


def test_vended_logs_do_not_grow_the_accounts_resource_policy() -> None:
    group = Stack().properties("AccessLogGroup")["LogGroupName"]
    assert group == "/aws/vendedlogs/apis/gpt2"


def test_the_functions_timeout_is_shorter_than_the_apis() -> None:
    assert int(Stack().parameters["Timeout"]) < 30


@pytest.mark.parametrize(
    ("access", "auth", "mode"),
    [
        ("iam", "AWS_IAM", "BUFFERED"),
        ("iam-stream", "AWS_IAM", "RESPONSE_STREAM"),
        ("public", "NONE", "BUFFERED"),
        ("public-stream", "NONE", "RESPONSE_STREAM"),
    ],
)
def test_the_function_url_has_the_requested_access(access: str, auth: str, mode: str) -> None:
    stack = Stack(**PUBLIC | {"UrlAccess": access})
    assert stack.properties("FunctionUrl") == {
        "TargetFunctionArn": "<FunctionAliaslive>",
        "AuthType": auth,
        "InvokeMode": mode,
    }
    by_anyone = [p for p in stack.of_type("AWS::Lambda::Permission").values()
                 if p["Principal"] == "*"]  # fmt: skip
    url = {"Action": "lambda:InvokeFunctionUrl", "FunctionUrlAuthType": "NONE"}
    invoke = {"Action": "lambda:InvokeFunction", "InvokedViaFunctionUrl": True}
    anyone = {"FunctionName": "<FunctionAliaslive>", "Principal": "*"}
    assert by_anyone == ([url | anyone, invoke | anyone] if auth == "NONE" else [])
    assert environment(stack)["GPT2_API_KEY"] == PUBLIC["ApiKey"]


def test_the_rest_api_streams_to_signed_requests() -> None:
    assert "RestApiStack" not in Stack().resources
    rest = Stack(RestApi="stream").nested("RestApiStack")
    api = rest.properties("Api")
    assert api["EndpointConfiguration"] == {"Types": ["REGIONAL"]}
    assert api["Body"]["paths"].keys() == {"/", "/{proxy+}"}
    for path in api["Body"]["paths"].values():
        operation = path["x-amazon-apigateway-any-method"]
        assert operation["x-amazon-apigateway-auth"] == {"type": "AWS_IAM"}
        assert operation["x-amazon-apigateway-integration"] == {
            "type": "aws_proxy",
            "httpMethod": "POST",
            "responseTransferMode": "STREAM",
            "timeoutInMillis": 900_000,
            "uri": "arn:aws:apigateway:eu-central-1:lambda:path/2021-11-15/functions/"
            "<FunctionAliaslive>/response-streaming-invocations",
        }
    (stage,) = rest.of_type("AWS::ApiGateway::Stage").values()
    (limits,) = stage["MethodSettings"]
    assert (limits["ResourcePath"], limits["ThrottlingRateLimit"]) == ("/*", 20)
    (permission,) = rest.of_type("AWS::Lambda::Permission").values()
    assert permission["FunctionName"] == "<FunctionAliaslive>"
    assert permission["SourceArn"].endswith(":<Api>/*")


@pytest.mark.parametrize(
    ("parameters", "endpoints"),
    [
        ({}, None),
        ({"UrlAccess": "iam-stream"}, "url"),
        ({"RestApi": "stream"}, "rest"),
        ({**PUBLIC, "UrlAccess": "public-stream", "RestApi": "stream"}, "url,rest"),
    ],
)
def test_the_function_is_configured_for_the_endpoints_that_stream(
    parameters: dict[str, Any], endpoints: str | None
) -> None:
    assert environment(Stack(**parameters)).get("GPT2_STREAM") == endpoints


def test_the_demo_model_is_the_default() -> None:
    assert environment(Stack()) == {"GPT2_PRELOAD": "lazy"}


def test_a_model_in_the_image_is_configured() -> None:
    stack = Stack(Model="models/mine", Queue="standard", SnapStart="PublishedVersions")
    assert not stack.problems()
    for deployed in (stack, stack.nested("BatchStack")):
        assert environment(deployed)["GPT2_MODEL_DIR"] == "/mnt/gpt2"
    assert stack.properties("Function")["SnapStart"] == {"ApplyOn": "PublishedVersions"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "platform", "model"),
    [
        ("sam build", "linux/amd64", "models/none"),
        ("sam build --config-env arm64", "linux/arm64", "models/none"),
        (
            "sam build --parameter-overrides Architecture=arm64 Model=models/mine",
            "linux/arm64",
            "models/mine",
        ),
    ],
)
def test_the_guides_commands_build_each_image_for_its_architecture_with_its_model(
    tmp_path: Path, command: str, platform: str, model: str
) -> None:
    assert command in (ROOT / "docs" / "deploy.md").read_text()
    with docker_api() as (address, builds):
        subprocess.run(
            [SAM, *command.split()[1:], "--build-dir", tmp_path / "built"],
            env=os.environ | {"DOCKER_HOST": address, "SAM_CLI_TELEMETRY": "0",
                              "HOME": str(tmp_path), "AWS_DEFAULT_REGION": "eu-central-1"},
            cwd=ROOT,
            capture_output=True,
            check=True,
        )  # fmt: skip
    assert len(builds) == 3  # the functions for requests, batches and filling the volume
    for build in builds:
        assert build["platform"] == platform
        assert json.loads(build["buildargs"]) == {"MODEL": model}
        assert (build["dockerfile"], build["target"]) == ("Dockerfile", "function")


def test_samconfig_has_one_architecture_for_build_and_deploy() -> None:
    import tomllib

    config = tomllib.loads((ROOT / "samconfig.toml").read_text())
    for name, architecture in (("default", "x86_64"), ("arm64", "arm64")):
        overrides = config[name]["global"]["parameters"]["parameter_overrides"]
        assert f"Architecture={architecture}" in overrides.split()
        for command in ("build", "deploy"):
            assert "parameter_overrides" not in config[name].get(command, {}).get("parameters", {})


def test_the_guide_lists_exactly_the_parameters() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    parameters = Stack().parameters.keys()
    set_there = set(re.findall(r"\b([A-Z][a-z][A-Za-z0-9]+)=", guide))
    assert set_there <= parameters
    missing = {name for name in parameters if not re.search(rf"\b{name}\b", guide)}
    assert missing == set()


def test_dockerignore_includes_what_the_dockerfile_copies() -> None:
    copied = [
        line.split()[1].replace("${MODEL}", "models/none")
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
    ]
    ignore = (ROOT / ".dockerignore").read_text().split()
    assert len(copied) > 5
    for source in copied:
        path = Path(source)
        assert {f"!{part}" for part in (path, *path.parents)} & {*ignore}, source
        assert (ROOT / source).exists()


def test_every_environment_variable_is_a_known_setting() -> None:
    stack = Stack(**PUBLIC, RestApi="stream", HfToken="hf_0123456789", ModelUri="hf://a/b",
                  ModelSha256=64 * "a", BasePath="/gpt2", MaxPromptTokens="1", MaxNewTokens="1",
                  Files="yes", StateMachine="yes", Volume="EFS", **NETWORK)  # fmt: skip
    named = {
        name
        for found in (stack, stack.nested("BatchStack"), stack.nested("PopulateStack"))
        for name in environment(found)
    }
    read = (ROOT / "handler" / "settings.py").read_text()
    missing = {name for name in named - {"HF_TOKEN"} if f'"{name}"' not in read}
    assert not missing
    assert {"GPT2_MODEL_DIR", "GPT2_MODEL_URI", "GPT2_STATE_MACHINE", "HF_TOKEN"} <= named


def test_secrets_are_hidden() -> None:
    for parameter in ("ApiKey", "HfToken"):
        assert Stack().template["Parameters"][parameter]["NoEcho"] is True
    for name in ("BatchStack", "PopulateStack"):
        nested = Stack(Queue="standard", Volume="EFS", **NETWORK).nested(name)
        assert nested.template["Parameters"]["HfToken"]["NoEcho"] is True


def test_the_function_that_fills_the_volume_has_enough_time() -> None:
    stack = Stack(Volume="EFS", ModelUri="hf://a/b", HfToken="hf_0123456789", **NETWORK)
    populate = stack.nested("PopulateStack")
    function = populate.properties("Function")
    assert function["Timeout"] == 900
    assert environment(populate) == {
        "GPT2_MODEL_DIR": "/mnt/gpt2",
        "GPT2_MODEL_URI": "hf://a/b",
        "HF_TOKEN": "hf_0123456789",
    }
    mounted = stack.properties("Function")["FileSystemConfigs"]
    assert function["FileSystemConfigs"] == mounted
    assert function["VpcConfig"] == stack.properties("Function")["VpcConfig"]


def test_volumes_are_encrypted_and_accessed_without_root(
    volume: dict[str, Any],
) -> None:
    assert volume["FileSystem"]["Properties"]["Encrypted"] is True
    (encryption,) = volume["Bucket"]["Properties"]["BucketEncryption"][
        "ServerSideEncryptionConfiguration"
    ]
    assert encryption["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    for name in ("AccessPoint", "S3AccessPoint"):
        assert int(volume[name]["Properties"]["PosixUser"]["Uid"]) > 0


def test_only_the_function_can_reach_the_volume(
    volume: dict[str, Any],
) -> None:
    (ingress,) = volume["VolumeSecurityGroup"]["Properties"]["SecurityGroupIngress"]
    assert ingress["SourceSecurityGroupId"] == "<FunctionSecurityGroup>"
    assert (ingress["FromPort"], ingress["ToPort"], "CidrIp" in ingress) == (2049, 2049, False)
    assert "SecurityGroupIngress" not in volume["FunctionSecurityGroup"]["Properties"]
    targets = [r for r in volume.values() if r["Type"].endswith("::MountTarget")]
    assert len(targets) == 4
    for target in targets:
        assert target["Properties"]["SecurityGroups"] == ["<VolumeSecurityGroup>"]


def test_each_kind_of_volume_creates_only_its_own_resources() -> None:
    def made(kind: str) -> set[str]:
        resources = Stack(Volume=kind, **NETWORK).nested("VolumeStack").resources.values()
        return {r["Type"].split("::")[1] for r in resources}

    assert made("EFS") == {"EC2", "EFS"}
    assert made("S3Files") == {"EC2", "S3", "S3Files", "IAM"}


def test_the_bucket_is_private_versioned_and_retained(volume: dict[str, Any]) -> None:
    bucket = volume["Bucket"]
    assert all(bucket["Properties"]["PublicAccessBlockConfiguration"].values())
    assert bucket["Properties"]["VersioningConfiguration"]["Status"] == "Enabled"
    assert bucket["UpdateReplacePolicy"] == "Retain"


def test_all_log_groups_have_a_retention() -> None:
    stack = Stack(Files="yes", StateMachine="yes", LogRetentionInDays=7)
    groups = [r["Properties"] for _, r in stack.all_resources()
              if r["Type"] == "AWS::Logs::LogGroup"]  # fmt: skip
    assert len(groups) == 4
    assert all(group["RetentionInDays"] == "7" for group in groups)
