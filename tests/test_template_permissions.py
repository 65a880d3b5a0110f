"""The permissions of the roles, for the relevant combinations of parameters."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cloudformation import SAM_PYTHON, STACK_ID, Stack

pytestmark = pytest.mark.skipif(
    not SAM_PYTHON.exists(), reason="SAM is not installed: `make test` does"
)

MANAGED = "arn:aws:iam::aws:policy/"
BASIC = MANAGED + "service-role/AWSLambdaBasicExecutionRole"
VPC = MANAGED + "service-role/AWSLambdaVPCAccessExecutionRole"
XRAY = MANAGED + "AWSXRayDaemonWriteAccess"
NETWORK = {"VpcId": "vpc-11111111", "SubnetA": "subnet-11111111", "SubnetB": "subnet-22222222"}
VOLUMES: list[dict[str, Any]] = [{"Volume": kind, **NETWORK} for kind in ("EFS", "S3Files")]
KEYS = ["arn:aws:kms:eu-central-1:123456789012:key/a", "arn:aws:kms:eu-west-1:123456789012:key/b"]
BATCHES = {"Queue": "standard", "Files": "yes", "StateMachine": "yes"}
MACHINE = f"arn:aws:states:eu-central-1:123456789012:stateMachine:gpt2-{STACK_ID}"
EXECUTIONS = f"arn:aws:states:eu-central-1:123456789012:execution:gpt2-{STACK_ID}"


def managed(stack: Stack, role: str = "Role") -> list[str]:
    found = stack.properties(role)["ManagedPolicyArns"]
    assert isinstance(found, list)
    return found


def statements(stack: Stack, role: str = "Role") -> dict[str, Any]:
    """The statements of a role's inline policies: action, resource and condition."""
    found: dict[str, Any] = {}
    for policy in stack.properties(role).get("Policies", []):
        for statement in policy["PolicyDocument"]["Statement"]:
            for action in as_list(statement["Action"]):
                allowed = found.setdefault(action, [])
                allowed.append((statement["Resource"], statement.get("Condition")))
    return found


def reading(**parameters: Any) -> dict[str, Any]:
    """The model read permissions of all functions."""
    access = Stack(**parameters).nested("AccessStack")
    if "ReadingPolicy" not in access.resources:
        return {}
    document = access.properties("ReadingPolicy")["PolicyDocument"]
    return {s["Action"]: (s["Resource"], s.get("Condition")) for s in document["Statement"]}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def allowed() -> Iterator[tuple[str, dict[str, Any]]]:
    """All Allow statements, of stacks with all parts."""
    everything = {
        **BATCHES,
        "RestApi": "stream",
        "UrlAccess": "public",
        "Tracing": "Active",
        "ModelUri": "s3://models/gpt2",
        "SourceBucket": "uploads",
        "SourceTopicArn": "arn:aws:sns:eu-central-1:123456789012:uploads",
        "KmsKeyArns": ",".join(KEYS),
    }
    for volume in VOLUMES:
        for name, resource in Stack(**everything, **volume).all_resources():
            properties = resource.get("Properties", {})
            documents = [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
            if "PolicyDocument" in properties:
                documents.append(properties["PolicyDocument"])
            for document in documents:
                for statement in document["Statement"]:
                    if statement["Effect"] == "Allow":
                        yield name, statement


@pytest.mark.parametrize(
    ("uri", "objects", "bucket", "folder"),
    [
        ("s3://models/gpt2", "models/gpt2/*", "models", "gpt2"),
        ("s3://models/gpt2/", "models/gpt2/*", "models", "gpt2"),
        ("s3://models/team/gpt2", "models/team/gpt2/*", "models", "team"),
        ("s3://models/models/gpt2/", "models/models/gpt2/*", "models", "models"),
        ("s3://models", "models/*", "models", ""),
        ("s3://models/", "models/*", "models", ""),
    ],
)
def test_the_function_can_read_only_its_model(
    uri: str, objects: str, bucket: str, folder: str
) -> None:
    assert not Stack(ModelUri=uri).problems()
    assert reading(ModelUri=uri) == {
        "s3:GetObject": (f"arn:aws:s3:::{objects}", None),
        "s3:ListBucket": (
            f"arn:aws:s3:::{bucket}",
            {"StringLike": {"s3:prefix": [folder, f"{folder}/*"]}},
        ),
    }


def test_keys_of_encrypted_buckets_decrypt_only_through_s3() -> None:
    by_s3 = {"StringLike": {"kms:ViaService": "s3.*.amazonaws.com"}}
    assert reading(KmsKeyArns=",".join(KEYS)) == {"kms:Decrypt": (KEYS, by_s3)}
    both = reading(KmsKeyArns=KEYS[0], ModelUri="s3://models/gpt2")
    assert both["kms:Decrypt"] == ([KEYS[0]], by_s3)
    assert both.keys() == {"kms:Decrypt", "s3:GetObject", "s3:ListBucket"}


def test_every_function_can_read_the_model() -> None:
    stack = Stack(ModelUri="s3://models/gpt2", **BATCHES, **VOLUMES[0])
    for name in ("AccessStack", "PopulateStack", "BatchStack"):
        assert "<ReadingPolicy>" in managed(stack.nested(name))
    demo = Stack(**BATCHES, **VOLUMES[0])
    for name in ("AccessStack", "PopulateStack", "BatchStack"):
        assert "<ReadingPolicy>" not in managed(demo.nested(name))


def test_without_a_volume_the_function_has_no_permissions_of_a_vpc() -> None:
    plain = Stack()
    assert managed(plain.nested("AccessStack")) == [BASIC]
    assert statements(plain.nested("AccessStack")) == {}
    assert managed(Stack(**VOLUMES[0]).nested("AccessStack")) == [VPC]
    # SAM creates a role with these permissions for functions without a role.
    assert not plain.of_type("AWS::IAM::Role")
    assert plain.properties("Function")["Role"] == "<Role.Arn>"


def test_traces_are_written_only_if_enabled() -> None:
    stack = Stack(Tracing="Active", **BATCHES)
    assert managed(stack.nested("AccessStack")) == [BASIC, XRAY]
    batch = stack.nested("BatchStack")
    assert XRAY in managed(batch)
    assert managed(batch.nested("LargeFilesStack")) == [XRAY]
    assert managed(Stack(**BATCHES).nested("BatchStack").nested("LargeFilesStack")) == []


@pytest.mark.parametrize("volume", VOLUMES)
def test_the_request_function_has_read_only_access_to_the_volume(volume: dict[str, Any]) -> None:
    stack = Stack(**volume)
    service = "elasticfilesystem" if volume["Volume"] == "EFS" else "s3files"
    point = (
        "<AccessPoint.Arn>" if service == "elasticfilesystem" else "<S3AccessPoint.AccessPointArn>"
    )
    system = (
        "<FileSystem.Arn>" if service == "elasticfilesystem" else "<S3FileSystem.FileSystemArn>"
    )
    through = {"StringEquals": {f"{service}:AccessPointArn": point}}
    answering = statements(stack.nested("AccessStack"))
    assert answering.pop(f"{service}:ClientMount") == [(system, through)]
    if service == "s3files":  # large reads bypass it
        bucket = [("arn:aws:s3:::<Bucket>/gpt2/*", None)]
        assert answering == {"s3:GetObject": bucket, "s3:GetObjectVersion": bucket}
    else:
        assert answering == {}
    filling = statements(stack.nested("PopulateStack"))
    assert filling == {
        f"{service}:ClientMount": [(system, through)],
        f"{service}:ClientWrite": [(system, through)],
    }


def test_the_batch_function_can_access_only_its_own_resources() -> None:
    results = ("arn:aws:s3:::<Results>/results/*", None)
    always = {
        "s3:GetObject": [results],
        "s3:PutObject": [results],
        "s3:DeleteObject": [results],
        "s3:AbortMultipartUpload": [results],
        "s3:ListBucket": [("<Results.Arn>", {"StringLike": {"s3:prefix": "results/*"}})],
        "sqs:SendMessage": [("<Failed.Arn>", None)],
    }
    queue = {
        action: [("<Messages.Arn>", None)]
        for action in ("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes")
    }

    def batch(**parameters: Any) -> Stack:
        return Stack(**parameters).nested("BatchStack")

    assert statements(batch(Queue="standard")) == always | queue
    prompts = ("arn:aws:s3:::<Prompts>/*", None)
    read = {"s3:GetObject": [results, prompts], "s3:GetObjectVersion": [prompts]}
    assert statements(batch(Files="yes")) == always | read
    start = {
        "states:StartExecution": [(MACHINE, None)],
        "states:DescribeExecution": [(f"{EXECUTIONS}:*", None)],
    }
    assert statements(batch(Files="yes", StateMachine="yes")) == always | read | start
    uploads = ("arn:aws:s3:::uploads/*", None)
    read = {"s3:GetObject": [results, uploads], "s3:GetObjectVersion": [uploads]}
    assert statements(batch(Queue="standard", SourceBucket="uploads")) == always | queue | read


def test_only_the_configured_bucket_and_topic_can_send_to_the_queue() -> None:
    def senders(**parameters: Any) -> dict[str, Any]:
        batch = Stack(Queue="standard", **parameters).nested("BatchStack")
        if "MessagesPolicy" not in batch.resources:
            return {}
        document = batch.properties("MessagesPolicy")["PolicyDocument"]
        for statement in document["Statement"]:
            assert (statement["Action"], statement["Resource"]) == (
                "sqs:SendMessage",
                "<Messages.Arn>",
            )
        return {s["Principal"]["Service"]: s["Condition"] for s in document["Statement"]}

    topic = "arn:aws:sns:eu-central-1:123456789012:uploads"
    bucket = {
        "ArnEquals": {"aws:SourceArn": "arn:aws:s3:::uploads"},
        "StringEquals": {"aws:SourceAccount": "123456789012"},
    }
    by_topic = {"ArnEquals": {"aws:SourceArn": topic}}
    assert senders() == {}
    assert senders(SourceBucket="uploads") == {"s3.amazonaws.com": bucket}
    assert senders(SourceTopicArn=topic) == {"sns.amazonaws.com": by_topic}
    assert senders(SourceBucket="uploads", SourceTopicArn=topic) == {
        "s3.amazonaws.com": bucket,
        "sns.amazonaws.com": by_topic,
    }


def test_the_state_machine_can_invoke_log_and_be_redriven() -> None:
    machine = Stack(**BATCHES).nested("BatchStack").nested("LargeFilesStack")
    assert machine.properties("Batches")["StateMachineName"] == MACHINE.rsplit(":", 1)[1]
    found = statements(machine)
    assert found["lambda:InvokeFunction"] == [("<FunctionAliaslive>", None)]
    assert found["states:StartExecution"] == [(MACHINE, None)]
    for action in ("states:DescribeExecution", "states:StopExecution"):
        assert found[action] == [([f"{EXECUTIONS}:*", f"{EXECUTIONS}/*"], None)]
    assert found["states:RedriveExecution"] == [(f"{EXECUTIONS}/Prompts:*", None)]
    assert found["logs:CreateLogDelivery"] == [("*", None)]


def test_only_log_delivery_is_allowed_on_all_resources() -> None:
    seen = 0
    for name, statement in allowed():
        actions = as_list(statement["Action"])
        seen += len(actions)
        assert not any("*" in action for action in actions), name
        if not all(action.startswith("logs:") for action in actions):
            assert "*" not in as_list(statement["Resource"]), name
        if "s3:ListBucket" in actions and name != "SynchronizationRole":
            assert "s3:prefix" in statement["Condition"]["StringLike"], name
    assert seen > 60


def test_only_s3_files_can_assume_the_role_that_writes_to_the_bucket() -> None:
    volume = Stack(**VOLUMES[1]).nested("VolumeStack")
    trust = volume.properties("SynchronizationRole")["AssumeRolePolicyDocument"]
    (statement,) = trust["Statement"]
    assert statement["Principal"] == {"Service": "elasticfilesystem.amazonaws.com"}
    assert statement["Condition"]["StringEquals"]["aws:SourceAccount"] == "123456789012"
