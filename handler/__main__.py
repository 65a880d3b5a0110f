"""The command line of the function: `python -m handler invoke | serve | fetch`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from gpt2core import __version__
from gpt2core.command_line import parser_with_commands
from gpt2core.errors import GPT2Error

_URIS = "s3://bucket/prefix or hf://owner/name[@revision]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 for success, 1 for failure, 2 for bad usage."""
    args = _parser().parse_args(argv)
    if args.command != "fetch" and args.model:
        if not any(os.path.isfile(os.path.join(args.model, n)) for n in ("config.json", "CURRENT")):
            problem = "is not a model directory: it has neither config.json nor CURRENT"
            print(f"error: --model {args.model} {problem}", file=sys.stderr)
            return 1
        os.environ["GPT2_MODEL_DIR"] = os.path.abspath(args.model)
        os.environ.pop("GPT2_MODEL_URI", None)  # not a fallback for --model
    try:
        if args.command == "invoke":
            return _invoke(args.event, args.text)
        if args.command == "fetch":
            return _fetch(args.uri, args.directory, args.sha256, args.pack)
        from handler.server import main as serve  # http.server, 40 ms

        return serve(port=args.port)
    except GPT2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'event'}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser, add_command = parser_with_commands(
        "gpt2-lambda",
        "handler",
        __version__,
        "GPT-2 on AWS Lambda, locally.",
        "%(prog)s serve",
    )

    invoke = add_command(
        "invoke",
        "process one event in this process, as a cold start",
        "  %(prog)s events/api-generate.json\n"
        '  echo \'{"prompt": "The wolf"}\' | %(prog)s --text -',
    )
    invoke.add_argument("event", metavar="EVENT.json", help="file with the event, or - for stdin")
    invoke.add_argument("--text", action="store_true", help="print only the text of the reply")
    serve = add_command(
        "serve",
        "run a local HTTP server that behaves like a Function URL",
        "  %(prog)s\n  %(prog)s --port 0 --model DIR",
    )
    serve.add_argument("--port", type=_port, help="default: PORT, else 8080; 0 for any free port")
    fetch = add_command(
        "fetch",
        "download and verify a model, and publish it in a directory",
        "  %(prog)s hf://openai-community/gpt2 /mnt/gpt2\n"
        "  %(prog)s s3://bucket/gpt2 /mnt/gpt2 --pack int8",
    )
    fetch.add_argument("uri", metavar="URI", type=_uri, help=_URIS)
    fetch.add_argument(
        "directory", metavar="DIR", help="contains CURRENT and revisions/<digest>/ afterwards"
    )
    fetch.add_argument(
        "--sha256",
        metavar="DIGEST",
        type=_digest,
        help="expected SHA-256 of the manifest or the weights file",
    )
    fetch.add_argument(
        "--pack",
        nargs="?",
        const="f32",
        choices=("f32", "bf16", "int8"),
        help="publish packed weights, which open faster (default precision f32)",
    )
    for command in (invoke, serve):
        command.add_argument(
            "--model",
            metavar="DIR",
            help="model directory (default: GPT2_MODEL_DIR, else GPT2_MODEL_URI, else the demo)",
        )
    return parser


def _invoke(path: str, text_only: bool) -> int:
    with sys.stdin.buffer if path == "-" else open(path, "rb") as file:
        raw = file.read()
    try:
        event = json.loads(raw)
    except (ValueError, RecursionError) as broken:
        name = "stdin" if path == "-" else path
        print(f"error: {name} is not JSON: {broken}", file=sys.stderr)
        return 1
    from handler.app import function, lambda_handler  # reads the settings
    from handler.telemetry import log_error

    function.log_invoke = _ignore
    # A GPT2Error is printed below instead.
    function.log_error = lambda e, context: (
        None if isinstance(e, GPT2Error) else log_error(e, context)
    )
    reply = lambda_handler(event)
    payload = _payload(reply)
    error = payload.get("error") if isinstance(payload, dict) else None
    if isinstance(error, str):  # as in Hugging Face's servers
        error = {"type": payload["error_type"], "message": error}
    if error:
        print(f"error: {error['type']}: {error['message']}", file=sys.stderr)
    if text_only:
        for text in [] if error else _texts(event, payload):
            print(text)
    else:
        print(json.dumps(reply, indent=2, ensure_ascii=False))
    report = function.last_report
    if report and not error:
        start = "cold" if report.cold_start else "warm"
        model = f"model: {report.model}" if report.model else "no model used"
        print(f"\n{start} start, milliseconds ({model})", file=sys.stderr)
        for phase, ms in report.timings_ms.items():
            print(f"  {phase:<10}{ms:>9.1f}", file=sys.stderr)
    return 1 if error else 0


def _ignore(*args: object) -> None:
    """Write no log line."""


def _fetch(uri: str, directory: str, sha256: str | None, pack: str | None) -> int:
    """Print the model directory of the new revision on stdout."""
    from handler.store.download import to_directory  # imports threading and hashlib

    os.makedirs(directory, exist_ok=True)
    fetched = to_directory(uri, os.path.abspath(directory), pin=sha256, pack=pack)
    if not fetched.fetched:
        print("unchanged: the directory already has this model", file=sys.stderr)
    print(fetched.path)
    return 0


def _payload(reply: Any) -> Any:
    """The body of an HTTP reply, or the reply itself; an event stream is a string."""
    if isinstance(reply, dict) and "statusCode" in reply:
        is_json = reply["headers"]["Content-Type"] == "application/json"
        return json.loads(reply["body"]) if is_json else reply["body"]
    return reply


def _texts(event: Any, payload: Any) -> list[str]:
    """The generated texts of a reply, or its status."""
    from handler.app import function
    from handler.jobs import Generate
    from handler.sources import source_of

    if isinstance(payload, str):
        return [payload.rstrip("\n")]
    job = source_of(event).parse(function.settings)
    if isinstance(job, Generate):
        return job.request.dialect.texts(payload)
    return [payload.get("status") or json.dumps(payload)]


def _uri(text: str) -> str:
    from handler.settings import is_remote, without_secrets

    if not is_remote(text):
        raise argparse.ArgumentTypeError(f"{without_secrets(text)!r} is not {_URIS}")
    return text


def _digest(text: str) -> str:
    if len(text) != 64 or not set(text.lower()) <= set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text!r} is not 64 hexadecimal digits")
    return text.lower()


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
