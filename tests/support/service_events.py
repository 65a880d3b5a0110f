"""Events of AWS services: all of `sam local generate-event`, and more from the developer guides.

The latter are shortened to the fields that identify the service.

Sources: AWS Lambda Developer Guide ("Using Lambda with other services"), the developer guides of
Amazon EventBridge (Pipes), Amazon S3 (Object Lambda, Batch Operations), Amazon Cognito, Amazon Lex,
Amazon Bedrock, Amazon VPC Lattice, API Gateway, AWS AppSync, AWS Config, CloudFormation.
"""

import json
import subprocess
from functools import cache
from typing import Any

from tests.conftest import ROOT

SAM_PYTHON = ROOT / ".venv-dev" / "bin" / "python"
_ALL = """
import json
from samcli.lib.generated_sample_events.events import Events
library, found = Events(), {}
for service, kinds in library.event_mapping.items():
    for kind, about in kinds.items():
        if "tags" in about:
            values = {name: tag.get("default") for name, tag in about["tags"].items()}
            found[f"{service} {kind}"] = json.loads(library.generate_event(service, kind, values))
print(json.dumps(found))
"""
_KINESIS = {
    "kinesis": {"partitionKey": "1", "sequenceNumber": "4959", "data": "eyJwcm9tcHQiOiAiYSJ9"},
    "eventSource": "aws:kinesis",
    "eventName": "aws:kinesis:record",
    "eventSourceARN": "arn:aws:kinesis:us-east-1:123456789012:stream/s",
}
_DYNAMODB = {
    "eventID": "1",
    "eventName": "INSERT",
    "eventSource": "aws:dynamodb",
    "dynamodb": {"Keys": {"Id": {"N": "101"}}, "NewImage": {"prompt": {"S": "a"}}},
}
_KAFKA_RECORD = {"topic": "t", "partition": 0, "offset": 15, "value": "eyJwcm9tcHQiOiAiYSJ9"}
_IDENTITY = {"sub": "a", "username": "b"}

GUIDES: dict[str, Any] = {
    "MSK": {
        "eventSource": "aws:kafka",
        "eventSourceArn": "arn:aws:kafka:us-east-1:123456789012:cluster/c",
        "bootstrapServers": "b-1:9092",
        "records": {"t-0": [_KAFKA_RECORD]},
    },
    "self-managed Kafka": {
        "eventSource": "SelfManagedKafka",
        "bootstrapServers": "b-1:9092",
        "records": {"t-0": [_KAFKA_RECORD]},
    },
    "ActiveMQ": {
        "eventSource": "aws:mq",
        "eventSourceArn": "arn:aws:mq:us-west-2:123456789012:broker:b",
        "messages": [{"messageID": "ID:b-1", "messageType": "jms/text-message", "data": "e30="}],
    },
    "RabbitMQ": {
        "eventSource": "aws:rmq",
        "eventSourceArn": "arn:aws:mq:us-west-2:123456789012:broker:b",
        "rmqMessagesByQueue": {"q::/": [{"basicProperties": {}, "data": "e30="}]},
    },
    "DocumentDB": {
        "eventSourceArn": "arn:aws:rds:us-east-1:123456789012:cluster:c",
        "events": [{"event": {"operationType": "insert", "fullDocument": {"prompt": "a"}}}],
        "eventSource": "aws:docdb",
    },
    "Kinesis": {"Records": [_KINESIS]},
    "DynamoDB": {"Records": [_DYNAMODB]},
    "Kinesis with a window": {"Records": [_KINESIS], "window": {}, "state": {}, "shardId": "1"},
    "Pipes from Kinesis": [_KINESIS["kinesis"] | {"eventSource": "aws:kinesis"}],
    "Pipes from DynamoDB": [_DYNAMODB],
    "Pipes from Kafka": [_KAFKA_RECORD | {"eventSource": "aws:kafka"}],
    "Pipes from MQ": [{"messageID": "ID:b-1", "eventSource": "aws:mq", "data": "e30="}],
    "Pipes with an input template": ["Once upon a time", "The wolf"],
    "Firehose": {
        "invocationId": "i",
        "deliveryStreamArn": "arn:aws:firehose:us-east-1:123456789012:deliverystream/d",
        "records": [{"recordId": "1", "data": "eyJwcm9tcHQiOiAiYSJ9"}],
    },
    "S3 Batch Operations": {
        "invocationSchemaVersion": "2.0",
        "invocationId": "i",
        "job": {"id": "j"},
        "tasks": [{"taskId": "t", "s3Key": "k", "s3Bucket": "b"}],
    },
    "S3 Object Lambda": {
        "xAmzRequestId": "r",
        "getObjectContext": {"inputS3Url": "https://x", "outputRoute": "o", "outputToken": "t"},
        "configuration": {"payload": "{}"},
        "userRequest": {"url": "https://x", "headers": {}},
    },
    "Cognito": {
        "version": "1",
        "triggerSource": "PreSignUp_SignUp",
        "userPoolId": "p",
        "request": {"userAttributes": {"email": "a@example.com"}},
        "response": {"autoConfirmUser": False},
    },
    "Lex": {
        "messageVersion": "1.0",
        "invocationSource": "DialogCodeHook",
        "inputTranscript": "Once upon a time",
        "sessionState": {"intent": {"name": "i", "slots": {}}},
    },
    "Bedrock agent": {
        "messageVersion": "1.0",
        "agent": {"name": "a", "id": "1", "alias": "x", "version": "1"},
        "inputText": "Once upon a time",
        "actionGroup": "g",
        "function": "f",
        "parameters": [{"name": "prompt", "type": "string", "value": "a"}],
    },
    "AppSync": {
        "arguments": {"prompt": "a"},
        "identity": _IDENTITY,
        "source": None,
        "request": {"headers": {}},
        "info": {"fieldName": "f", "parentTypeName": "Query"},
    },
    "AppSync batch": [{"arguments": {"prompt": "a"}, "identity": _IDENTITY, "source": {"id": 1}}],
    "AppSync authorizer": {"authorizationToken": "t", "requestContext": {"apiId": "a"}},
    "VPC Lattice 1.0": {
        "raw_path": "/generate",
        "method": "POST",
        "headers": {"content-type": "application/json"},
        "body": '{"prompt": "a"}',
        "is_base64_encoded": False,
    },
    "VPC Lattice 2.0": {
        "version": "2.0",
        "path": "/generate",
        "method": "POST",
        "headers": {"content-type": ["application/json"]},
        "body": '{"prompt": "a"}',
        "requestContext": {"serviceNetworkArn": "arn", "serviceArn": "arn", "timeEpoch": "1"},
    },
    "WebSocket connect": {
        "headers": {"Host": "x"},
        "requestContext": {
            "routeKey": "$connect",
            "eventType": "CONNECT",
            "connectionId": "c",
            "stage": "prod",
        },
        "isBase64Encoded": False,
    },
    "WebSocket message": {
        "requestContext": {"routeKey": "$default", "eventType": "MESSAGE", "connectionId": "c"},
        "body": '{"prompt": "a"}',
        "isBase64Encoded": False,
    },
    "token authorizer": {"type": "TOKEN", "methodArn": "arn", "authorizationToken": "t"},
    "request authorizer": {
        "type": "REQUEST",
        "methodArn": "arn",
        "httpMethod": "POST",
        "path": "/generate",
        "requestContext": {"stage": "prod", "httpMethod": "POST"},
    },
    "HTTP API authorizer": {
        "version": "2.0",
        "type": "REQUEST",
        "routeArn": "arn",
        "rawPath": "/generate",
        "requestContext": {"http": {"method": "POST", "path": "/generate"}},
    },
    "Config": {
        "invokingEvent": "{}",
        "ruleParameters": "{}",
        "resultToken": "t",
        "eventLeftScope": False,
    },
    "CodePipeline": {"CodePipeline.job": {"id": "j", "accountId": "1", "data": {}}},
    "CloudFormation custom resource": {
        "RequestType": "Create",
        "ResponseURL": "https://x",
        "StackId": "arn",
        "ResourceProperties": {"prompt": "a"},
    },
    "CloudFormation macro": {"transformId": "1::x", "fragment": {}, "params": {}, "requestId": "1"},
    "CloudFront": {"Records": [{"cf": {"config": {"eventType": "viewer-request"}, "request": {}}}]},
    "CodeCommit": {"Records": [{"eventSource": "aws:codecommit", "codecommit": {}}]},
    "CloudWatch alarm": {
        "source": "aws.cloudwatch",
        "alarmArn": "arn",
        "alarmData": {"alarmName": "a", "state": {"value": "ALARM"}},
    },
    "CloudWatch Logs": {"awslogs": {"data": "H4sIAAAAAAAA"}},
    "Connect": {"Name": "ContactFlowEvent", "Details": {"ContactData": {}, "Parameters": {}}},
    "Secrets Manager rotation": {
        "Step": "createSecret",
        "SecretId": "arn",
        "ClientRequestToken": "t",
    },
    "Alexa": {"version": "1.0", "session": {}, "context": {}, "request": {"type": "LaunchRequest"}},
    "IoT button": {"serialNumber": "G0", "batteryVoltage": "1", "clickType": "SINGLE"},
    "custom EventBridge event": {
        "version": "0",
        "detail-type": "Prompt",
        "source": "my.shop",
        "detail": {"prompt": "a"},
    },
    "EC2 state": {
        "source": "aws.ec2",
        "detail-type": "EC2 Instance State-change Notification",
        "detail": {"state": "running"},
    },
    "EventBridge API call": {
        "source": "aws.events",
        "detail-type": "AWS API Call via CloudTrail",
        "detail": {"eventName": "PutRule"},
    },
    "S3 object deleted": {
        "source": "aws.s3",
        "detail-type": "Object Deleted",
        "detail": {"bucket": {"name": "b"}, "object": {"key": "k"}},
    },
    "SNS": {
        "Records": [{"EventSource": "aws:sns", "Sns": {"Message": '{"prompt": "a"}', "Type": "x"}}]
    },
    "SES": {"Records": [{"eventSource": "aws:ses", "ses": {"mail": {"subject": "a"}}}]},
    "a queue message among other records": {
        "Records": [{"eventSource": "aws:sqs", "messageId": "m", "body": "{}"}, _KINESIS]
    },
    "DynamoDB scan": {"Items": [{"prompt": {"S": "a"}}], "Count": 1, "ScannedCount": 1},
    "no records": {"Records": []},
    "records that are not a list": {"Records": "a"},
    "an empty list": [],
    "an empty object": {},
    "a text": "Once upon a time",
    "a number": 5,
    "nothing": None,
    "true": True,
}


@cache
def sam_events() -> dict[str, Any]:
    """The events of `sam local generate-event` by service and kind; {} without SAM."""
    if not SAM_PYTHON.exists():
        return {}
    command = [SAM_PYTHON, "-W", "ignore", "-c", _ALL]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found
