"""An SQS queue in moto, and the polling of Lambda's event source mapping."""

import json
from collections.abc import Callable
from typing import Any

import boto3

from tests.support.s3_server import CREDENTIALS, SECRET_KEY

MAX_RECEIVES = 8
BATCH = 10


class Queue:
    """A queue with a dead-letter queue, to which moto moves messages after `MAX_RECEIVES`."""

    def __init__(self, address: str, name: str, *, fifo: bool = False) -> None:
        self._client: Any = boto3.client(
            "sqs",
            endpoint_url=f"http://{address}",
            region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=SECRET_KEY,
        )
        self.fifo = fifo
        suffix, kind = (".fifo", {"FifoQueue": "true"}) if fifo else ("", {})
        create = self._client.create_queue
        self.dead = create(QueueName=f"{name}-dead{suffix}", Attributes=kind)["QueueUrl"]
        asked = {"QueueUrl": self.dead, "AttributeNames": ["QueueArn"]}
        dead_arn = self._client.get_queue_attributes(**asked)["Attributes"]["QueueArn"]
        redrive = {"deadLetterTargetArn": dead_arn, "maxReceiveCount": MAX_RECEIVES}
        attributes = kind | {"RedrivePolicy": json.dumps(redrive), "VisibilityTimeout": "300"}
        self.url = create(QueueName=f"{name}{suffix}", Attributes=attributes)["QueueUrl"]
        self.arn = dead_arn.replace(f"{name}-dead", name)

    def send(self, bodies: list[str], groups: list[str] | None = None) -> list[str]:
        """Send messages, with groups for a FIFO queue; returns their ids."""
        ids = []
        for begin in range(0, len(bodies), BATCH):
            entries = [
                {"Id": str(i), "MessageBody": body}
                | (
                    {
                        "MessageGroupId": groups[begin + i] if groups else "g",
                        "MessageDeduplicationId": str(begin + i),
                    }
                    if self.fifo
                    else {}
                )
                for i, body in enumerate(bodies[begin : begin + BATCH])
            ]
            sent = self._client.send_message_batch(QueueUrl=self.url, Entries=entries)
            by_entry = {done["Id"]: done["MessageId"] for done in sent["Successful"]}
            ids += [by_entry[entry["Id"]] for entry in entries]
        return ids

    def receive(self, url: str = "") -> list[dict[str, Any]]:
        """Receive up to ten messages."""
        found = self._client.receive_message(
            QueueUrl=url or self.url, MaxNumberOfMessages=BATCH, AttributeNames=["All"]
        )
        messages = found.get("Messages", [])
        assert isinstance(messages, list)
        return messages

    def poll(self, invoke: Callable[[Any], Any]) -> bool:
        """Invoke the function with a batch and process its reply; False if the queue is empty."""
        messages = self.receive()
        if not messages:
            return False
        records = [
            {
                "messageId": m["MessageId"],
                "receiptHandle": m["ReceiptHandle"],
                "body": m["Body"],
                "attributes": m["Attributes"],
                "messageAttributes": {},
                "eventSource": "aws:sqs",
                "eventSourceARN": self.arn,
                "awsRegion": CREDENTIALS["AWS_DEFAULT_REGION"],
            }
            for m in messages
        ]
        reply = invoke({"Records": records})
        failed = set(_failures(reply, [m["MessageId"] for m in messages]))
        for m in messages:
            handle = {"QueueUrl": self.url, "ReceiptHandle": m["ReceiptHandle"]}
            if m["MessageId"] in failed:
                self._client.change_message_visibility(**handle, VisibilityTimeout=0)
            else:
                self._client.delete_message(**handle)
        return True

    def dead_letters(self) -> list[str]:
        """The ids of the messages in the dead-letter queue."""
        found: list[str] = []
        while messages := self.receive(self.dead):
            found += [m["MessageId"] for m in messages]
        return found


def _failures(reply: Any, ids: list[str]) -> list[str]:
    """The ids of failed messages (AWS Lambda Developer Guide, "Partial batch responses")."""
    if not isinstance(reply, dict) or "errorType" in reply:
        return ids
    failures = reply.get("batchItemFailures") or []
    names = [failure.get("itemIdentifier") for failure in failures]
    return names if all(name in ids for name in names) else ids
