"""The settings, from environment variables; see docs/settings.md."""

import math
import os
import re
from collections.abc import Mapping

from gpt2core.startup.slim_typing import Literal, NamedTuple
from handler.errors import SettingsError

MEMORY_PER_VCPU = 1769  # MB; AWS Lambda Developer Guide, "Configure Lambda function memory"
DEFAULT_MODEL_DIR = "/mnt/gpt2"
LOOPBACK = "127.0.0.1"
DEMO_URI = "demo"
MAX_PORT = 65535
MAX_COUNT = 2**63 - 1
MAX_THREADS = 1024
MAX_RESULTS_BYTES = 512
ACCEPTED_URIS = (
    "s3://bucket/prefix, whose bucket name has 3 to 63 characters, hf://owner/name[@revision] or"
    " demo"
)
# Patterns are strings: most starts do not need them, and compiling takes time.
# Bucket names and aliases: Amazon S3 User Guide, "General purpose bucket naming rules".
_S3_URI = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\x00-\x1f\x7f?#]*)?"
_STATE_MACHINE = r"arn:aws[a-z-]*:states:[a-z0-9-]+:[0-9]{12}:stateMachine:[^\s]{1,80}"
_ORIGIN = r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?"
_BASE_PATH = r"(/[^/\s?#%]+)+"
_HUB_URI = r"hf://\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?"


class Secret(str):
    """A string whose `repr` does not contain its value."""

    def __repr__(self) -> str:
        return "'…'"


class Settings(NamedTuple):
    """The settings, validated."""

    model_dir: str = DEFAULT_MODEL_DIR
    """Path of the volume."""
    model_uri: str | None = None
    """`s3://…`, `hf://…` or `demo`; None: the demo, unless `model_dir_named`."""
    model_dir_named: bool = False
    """Whether GPT2_MODEL_DIR is set; a missing model there is then an error."""
    model_sha256: str | None = None
    """Expected digest of the manifest or the weights file, in lower-case hexadecimal."""
    cache_dir: str = "/tmp/gpt2"  # noqa: S108 (Lambda has no other writable place)
    """Directory for downloads."""
    max_new_tokens: int | None = None
    """Upper limit for a request; None is the model's context."""
    max_prompt_tokens: int | None = None
    """Upper limit for a request; None is the model's context."""
    max_waiting: int = 64
    """Maximum number of requests in progress in one process; more are rejected."""
    preload: Literal["lazy", "init"] = "lazy"
    threads: int = 1
    kernels: Literal["auto", "native", "numpy"] = "auto"
    """`auto`: the compiled kernels if they run on this processor, else NumPy."""
    prompt_lookup: bool = True
    """Whether a pass may decode several tokens of a request that runs alone."""
    results: str | None = None
    """`s3://bucket/prefix` for the results of batches."""
    state_machine: str | None = None
    """ARN of the state machine that processes files over `max_object_bytes`."""
    max_object_bytes: int = 64 << 20
    base_path: str = ""
    """Path prefix to strip from requests, such as `/gpt2`; "" for none."""
    api_key: Secret | None = None
    """Key that HTTP requests must send unless IAM has authorized them; None: no key needed."""
    cors_origins: tuple[str, ...] = ()
    """Origins that may call the function from a browser; `*` allows all."""
    stream: tuple[str, ...] = ()
    """Endpoints whose replies are streamed: `url`, `rest` or both."""
    http_timeout: int | None = None
    """Seconds until an HTTP caller times out; None: the default of the event's source."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read and validate all variables; an empty one counts as unset.

        Raises:
            SettingsError: a variable is invalid; the message has its value and what is accepted.
        """

        def text(name: str) -> str | None:
            return environ.get(name) or None

        def count(name: str, most: int = MAX_COUNT) -> int | None:
            value = text(name)
            if value is None:
                return None
            # The length is limited because int() raises for thousands of digits.
            digits = value.isascii() and value.isdigit() and len(value.lstrip("0")) < 20
            if not digits or not 1 <= int(value.lstrip("0") or "0") <= most:
                upper = "" if most == MAX_COUNT else f" to {most}"
                raise SettingsError(name, value, f"an integer from 1{upper}")
            return int(value.lstrip("0"))

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
        kernels = environ.get("GPT2_KERNELS") or "auto"
        if kernels not in ("auto", "native", "numpy"):
            raise SettingsError("GPT2_KERNELS", kernels, "auto, native or numpy")
        prompt_lookup = text("GPT2_PROMPT_LOOKUP") or "on"
        if prompt_lookup not in ("on", "off"):
            raise SettingsError("GPT2_PROMPT_LOOKUP", prompt_lookup, "on or off")
        results = text("GPT2_RESULTS")
        if results and not re.fullmatch(_S3_URI, results):
            accepted = "s3://bucket or s3://bucket/prefix, with a bucket name of 3 to 63 characters"
            raise SettingsError("GPT2_RESULTS", without_secrets(results), accepted)
        if results and len(results.encode()) > MAX_RESULTS_BYTES:
            accepted = f"at most {MAX_RESULTS_BYTES} bytes, because S3 keys are limited to 1,024"
            raise SettingsError("GPT2_RESULTS", results, accepted)
        machine = text("GPT2_STATE_MACHINE")
        if machine and not re.fullmatch(_STATE_MACHINE, machine):
            raise SettingsError("GPT2_STATE_MACHINE", machine, "the ARN of a state machine")
        api_key = text("GPT2_API_KEY")
        if api_key and not re.fullmatch("[!-~]+", api_key):
            accepted = "ASCII letters, digits and punctuation, without spaces"
            raise SettingsError("GPT2_API_KEY", Secret(), accepted)
        origins = tuple(
            o.strip() for o in (text("GPT2_CORS_ORIGINS") or "").split(",") if o.strip()
        )
        for origin in origins:
            if origin != "*" and not re.fullmatch(_ORIGIN, origin):
                accepted = "* or origins such as https://example.com, separated by commas"
                raise SettingsError("GPT2_CORS_ORIGINS", without_secrets(origin), accepted)
        stream = text("GPT2_STREAM") or "off"
        if stream not in ("off", "url", "rest", "url,rest"):
            raise SettingsError("GPT2_STREAM", stream, "off, url, rest or url,rest")
        base_path = (text("GPT2_BASE_PATH") or "").rstrip("/")
        if base_path and not re.fullmatch(_BASE_PATH, base_path):
            raise SettingsError("GPT2_BASE_PATH", base_path, "a path such as /gpt2")
        for name, path in (
            ("GPT2_MODEL_DIR", model_dir),
            ("GPT2_CACHE_DIR", text("GPT2_CACHE_DIR")),
        ):
            if path and not os.path.isabs(path):
                raise SettingsError(name, path, "an absolute path")
        return cls(
            model_dir=model_dir or DEFAULT_MODEL_DIR,
            model_uri=model_uri,
            model_dir_named=model_dir is not None,
            model_sha256=digest.lower() if digest else None,
            cache_dir=text("GPT2_CACHE_DIR") or cls._field_defaults["cache_dir"],
            max_new_tokens=count("GPT2_MAX_NEW_TOKENS"),
            max_prompt_tokens=count("GPT2_MAX_PROMPT_TOKENS"),
            max_waiting=count("GPT2_MAX_WAITING") or cls._field_defaults["max_waiting"],
            preload=preload,  # type: ignore[arg-type]  # checked above
            threads=count("GPT2_THREADS", MAX_THREADS) or _vcpus(environ),
            kernels=kernels,  # type: ignore[arg-type]  # checked above
            prompt_lookup=prompt_lookup == "on",
            results=results,
            state_machine=machine,
            max_object_bytes=count("GPT2_MAX_OBJECT_BYTES")
            or cls._field_defaults["max_object_bytes"],
            base_path=base_path,
            api_key=Secret(api_key) if api_key else None,
            cors_origins=origins,
            stream=() if stream == "off" else tuple(stream.split(",")),
            http_timeout=count("GPT2_HTTP_TIMEOUT"),
        )


def local_host(environ: Mapping[str, str]) -> str:
    """The address that local servers listen on: `HOST`, else loopback."""
    return environ.get("HOST") or LOOPBACK


def local_port(environ: Mapping[str, str]) -> int:
    """The port that local servers listen on: `PORT`, else 8080.

    Raises:
        SettingsError: `PORT` is not a port number.
    """
    port = environ.get("PORT") or "8080"
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > MAX_PORT:
        raise SettingsError("PORT", port, f"an integer from 0 to {MAX_PORT}; 0 is any free port")
    return int(port)


def is_remote(uri: str) -> bool:
    """Whether a URI is `s3://…` or `hf://…`."""
    return bool(re.fullmatch(_S3_URI, uri) or re.fullmatch(_HUB_URI, uri, re.ASCII))


def without_secrets(uri: str) -> str:
    """A URI without credentials and query (presigned URLs have a signature there), for messages."""
    scheme, mark, rest = uri.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return scheme + mark + host.rpartition("@")[2] + slash + path


def _vcpus(environ: Mapping[str, str]) -> int:
    """The vCPUs of the function's memory size; outside of Lambda, the usable CPUs."""
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    memory = environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "")
    if not memory.isdigit():
        return usable
    return max(1, min(usable, math.ceil(int(memory) / MEMORY_PER_VCPU)))
