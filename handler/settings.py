"""The environment, read once into one immutable `Settings`."""

import math
import os
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from handler.errors import SettingsError

MEMORY_PER_VCPU = 1769  # MB; AWS Lambda Developer Guide, "Configure Lambda function memory"
DEFAULT_MODEL_DIR = "/mnt/gpt2"
LOOPBACK = "127.0.0.1"
DEMO_URI = "demo"
MEMORY = "memory"
ACCEPTED_URIS = "s3://bucket/prefix, hf://owner/name[@revision] or demo"
# Bucket names and aliases: Amazon S3 User Guide, "General purpose bucket naming rules".
# Compiled when a URI is there.
_S3_URI = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\x00-\x1f\x7f?#]*)?"
_STATE_MACHINE = r"arn:aws[a-z-]*:states:[a-z0-9-]+:[0-9]{12}:stateMachine:[^\s]{1,80}"
_HUB_URI = r"hf://\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?"


class Settings(NamedTuple):
    """What the operator chose. See the README's table of settings."""

    model_dir: str = DEFAULT_MODEL_DIR
    """The volume's path."""
    model_uri: str | None = None
    """`s3://…`, `hf://…` or `demo`; None: the demo, unless `model_dir` was named."""
    model_dir_named: bool = False
    """Whether `model_dir` was chosen, so that its lack is an error."""
    model_sha256: str | None = None
    """Lower-case hex digest that the manifest or the weights file must have."""
    cache_dir: str = "/tmp/gpt2"  # noqa: S108 (Lambda has no other writable place)
    """Where downloads go; `memory`: nowhere, they stay in memory."""
    max_new_tokens: int | None = None
    """Upper limit for a request; None is the model's context."""
    max_prompt_tokens: int | None = None
    """Upper limit for a request; None is the model's context."""
    preload: Literal["lazy", "init"] = "lazy"
    threads: int = 1
    results: str | None = None
    """`s3://bucket/prefix` for the results of batches."""
    state_machine: str | None = None
    """ARN of the state machine that takes files over `max_object_bytes`."""
    max_object_bytes: int = 64 << 20

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read and check every variable; an empty one counts as unset.

        Raises:
            SettingsError: names the variable, its value and what is accepted.
        """

        def text(name: str) -> str | None:
            return environ.get(name) or None

        def count(name: str, least: int = 1) -> int | None:
            value = text(name)
            if value is None:
                return None
            if not (
                value.isascii() and value.isdigit() and least <= int(value[:10]) and len(value) < 10
            ):
                raise SettingsError(name, value, f"a whole number from {least}")
            return int(value)

        model_dir = text("GPT2_MODEL_DIR")
        model_uri = text("GPT2_MODEL_URI")
        if model_uri and model_uri != DEMO_URI and not is_remote(model_uri):
            raise SettingsError("GPT2_MODEL_URI", without_secrets(model_uri), ACCEPTED_URIS)
        digest = text("GPT2_MODEL_SHA256")
        if digest and (len(digest) != 64 or not all(c in "0123456789abcdefABCDEF" for c in digest)):
            raise SettingsError("GPT2_MODEL_SHA256", digest, "64 hexadecimal digits")
        preload = environ.get("GPT2_PRELOAD") or "lazy"
        if preload not in ("lazy", "init"):
            raise SettingsError("GPT2_PRELOAD", preload, "lazy or init")
        results = text("GPT2_RESULTS")
        if results and not re.fullmatch(_S3_URI, results):
            shown = without_secrets(results)
            raise SettingsError("GPT2_RESULTS", shown, "s3://bucket or s3://bucket/prefix")
        machine = text("GPT2_STATE_MACHINE")
        if machine and not re.fullmatch(_STATE_MACHINE, machine):
            raise SettingsError("GPT2_STATE_MACHINE", machine, "the ARN of a state machine")
        for name, path in (
            ("GPT2_MODEL_DIR", model_dir),
            ("GPT2_CACHE_DIR", text("GPT2_CACHE_DIR")),
        ):
            if path and not os.path.isabs(path) and (name, path) != ("GPT2_CACHE_DIR", MEMORY):
                memory = f" or {MEMORY}" if name == "GPT2_CACHE_DIR" else ""
                raise SettingsError(name, path, f"an absolute path{memory}")
        if text("GPT2_CACHE_DIR") == MEMORY and (model_uri or "").startswith("hf://"):
            raise SettingsError("GPT2_CACHE_DIR", MEMORY, "an absolute path for a model of the Hub")
        return cls(
            model_dir=model_dir or DEFAULT_MODEL_DIR,
            model_uri=model_uri,
            model_dir_named=model_dir is not None,
            model_sha256=digest.lower() if digest else None,
            cache_dir=text("GPT2_CACHE_DIR") or cls._field_defaults["cache_dir"],
            max_new_tokens=count("GPT2_MAX_NEW_TOKENS"),
            max_prompt_tokens=count("GPT2_MAX_PROMPT_TOKENS"),
            preload=preload,  # type: ignore[arg-type]  # checked above
            threads=count("GPT2_THREADS") or _vcpus(environ),
            results=results,
            state_machine=machine,
            max_object_bytes=count("GPT2_MAX_OBJECT_BYTES")
            or cls._field_defaults["max_object_bytes"],
        )


def local_address(environ: Mapping[str, str]) -> str:
    """Where the local servers listen: `HOST`, or this machine alone."""
    return environ.get("HOST") or LOOPBACK


def is_remote(uri: str) -> bool:
    """Whether a URI names a model that can be downloaded."""
    return bool(re.fullmatch(_S3_URI, uri) or re.fullmatch(_HUB_URI, uri, re.ASCII))


def without_secrets(uri: str) -> str:
    """A URI to be shown: a presigned address carries its signature in the query."""
    scheme, mark, rest = uri.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return scheme + mark + host.rpartition("@")[2] + slash + path


def _vcpus(environ: Mapping[str, str]) -> int:
    """The vCPUs that the memory size buys, or outside of Lambda those this process may use."""
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    memory = environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "")
    if not memory.isdigit():
        return usable
    return max(1, min(usable, math.ceil(int(memory) / MEMORY_PER_VCPU)))
