"""Starts the state machine, through boto3, for files that are too large for one invocation."""

import json
from collections.abc import Iterable
from hashlib import sha256
from time import monotonic

from gpt2core.startup.slim_typing import Any
from handler.aws import classify, request_errors
from handler.batch.context import BatchContext
from handler.batch.lines import Line
from handler.batch.storage import shortened
from handler.errors import ResultsUnavailable, Unfinished
from handler.items import S3Object

# AWS Step Functions Developer Guide, "Quotas": the input of a state has at most 256 KiB. A batch
# stays below that by MaxInputBytesPerBatch in `templates/batches.asl.yaml`.
MAX_ITEM_BYTES = 200_000
MAX_EXECUTIONS = 10
_FAILED = ("FAILED", "TIMED_OUT", "ABORTED")
# In the bucket of the results. A run writes names such as SUCCEEDED_0.json to a folder of its own,
# whose name has 36 bytes.
_FOLDER = "state-machine/"
_RESERVED_KEY_BYTES = 80


def can_read(lines: Iterable[Line], deadline: float | None) -> bool:
    """Whether a Distributed Map can read all of a file: each line is an object and not too large.

    The developer guide does not say how it treats other lines; one could fail the whole execution.

    Raises:
        Unfinished: `deadline` (`time.monotonic()` seconds) came first.
    """
    for line in lines:
        if line.content is None or len(line.content) > MAX_ITEM_BYTES:
            return False
        try:
            if not isinstance(json.loads(line.content.decode()), dict):
                return False
        except (ValueError, RecursionError):  # neither UTF-8 nor JSON
            return False
        if deadline is not None and monotonic() > deadline:
            raise Unfinished("time ran out before the whole file was checked")
    return True


def start_execution(found: S3Object, context: BatchContext) -> dict[str, str]:
    """Start an execution for a file, once for each version of it, and again if one has failed.

    Returns the status, the name of the execution, and the address of its results.

    Raises:
        ResultsUnavailable: it cannot be started, or has failed too often.
    """
    import boto3

    content = f"{found.bucket}\0{found.key}\0{found.etag}"
    digest = sha256(content.encode()).hexdigest()
    prefix = _FOLDER + shortened(f"{found.key}.{found.etag}", len(_FOLDER) + _RESERVED_KEY_BYTES)
    machine = str(context.settings.state_machine)
    given = {"bucket": found.bucket, "key": found.key, "etag": found.etag, "prefix": prefix}
    client: Any = boto3.session.Session().client("stepfunctions")
    for run in range(1, MAX_EXECUTIONS + 1):
        name = digest if run == 1 else f"{digest}-{run}"
        if _start(client, machine, name, json.dumps(given)):
            results = f"s3://{context.storage.bucket}/{prefix}/"
            return {"status": "started", "execution": name, "results": results}
    raise ResultsUnavailable(
        f"{MAX_EXECUTIONS} executions of the state machine have failed for this file:"
        " correct what they report, then upload a changed file",
        param="GPT2_STATE_MACHINE",
    )


def _start(client: Any, machine: str, name: str, given: str) -> bool:
    """Start an execution unless that name exists; False if it exists and has failed."""
    operation = "states:StartExecution"
    try:
        try:
            client.start_execution(stateMachineArn=machine, name=name, input=given)
        except client.exceptions.ExecutionAlreadyExists:
            operation = "states:DescribeExecution"
            # The ARN of a state machine may end in a version or alias, those of executions do not.
            begin, _, names = machine.partition(":stateMachine:")
            arn = f"{begin}:execution:{names.partition(':')[0]}:{name}"
            status: str = client.describe_execution(executionArn=arn)["status"]
            return status not in _FAILED
    except request_errors() as error:
        answer = classify(error).answer or type(error).__name__
        raise ResultsUnavailable(
            f"the state machine cannot be started ({answer}): check GPT2_STATE_MACHINE, and that"
            f" the function is allowed {operation}",
            param="GPT2_STATE_MACHINE",
        ) from None
    return True
