"""Files that are too large for one function: the state machine takes them, by boto3."""

import json
from hashlib import sha256
from typing import Any

from handler.batch_events import S3Object
from handler.errors import ResultsUnavailable
from handler.results import error_codes, request_errors
from handler.settings import Settings


def hand_over(found: S3Object, settings: Settings) -> str:
    """Start the state machine on a file, once for each content of it; returns the execution's name.

    Raises:
        ResultsUnavailable: it cannot be started.
    """
    import boto3

    content = f"{found.bucket}\0{found.key}\0{found.etag}"
    name = sha256(content.encode()).hexdigest()
    client: Any = boto3.session.Session().client("stepfunctions")
    try:
        client.start_execution(
            stateMachineArn=settings.state_machine,
            name=name,
            input=json.dumps({"bucket": found.bucket, "key": found.key, "etag": found.etag}),
        )
    except request_errors() as error:
        codes = error_codes(error)
        if "ExecutionAlreadyExists" not in codes:
            reason = " ".join(sorted(codes)) or type(error).__name__
            raise ResultsUnavailable(
                f"the state machine cannot be started ({reason}): check GPT2_STATE_MACHINE, and"
                " that the function may states:StartExecution on it",
                param="GPT2_STATE_MACHINE",
            ) from None
    return name
