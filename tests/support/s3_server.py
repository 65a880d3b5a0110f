"""S3 over HTTP: moto's server in a separate process, and a bucket in it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.ports import free_ports, wait_for

SECRET_KEY = "secretKeyNotToBeLogged"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@contextmanager
def moto_server() -> Iterator[str]:
    """Run moto's server; yields its `host:port`."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


class Bucket:
    """A bucket, accessed by boto3 without the proxy."""

    def __init__(self, address: str, name: str) -> None:
        import boto3
        from botocore.config import Config

        self.address = address
        self.name = name
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=f"http://{address}",
            region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=SECRET_KEY,
            config=Config(request_checksum_calculation="when_required"),
        )
        where = {"LocationConstraint": CREDENTIALS["AWS_DEFAULT_REGION"]}
        self.client.create_bucket(Bucket=name, CreateBucketConfiguration=where)

    def upload(self, folder: Path, prefix: str, **arguments: Any) -> str:
        """Upload the files of a directory; returns the URI of the prefix."""
        for path in sorted(folder.iterdir()):
            self.put(f"{prefix}/{path.name}", path.read_bytes(), **arguments)
        return f"s3://{self.name}/{prefix}"

    def put(self, key: str, content: bytes, **arguments: Any) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content, **arguments)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)

    def content(self, prefix: str = "") -> dict[str, bytes]:
        """The objects whose keys start with `prefix`, by key."""
        found = {}
        pages = self.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.name, Prefix=prefix):
            for item in page.get("Contents", []):
                body = self.client.get_object(Bucket=self.name, Key=item["Key"])["Body"]
                found[item["Key"]] = body.read()
        return found
