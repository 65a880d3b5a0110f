"""The function's command line: `python -m handler invoke EVENT.json | serve | fetch URI DIR`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from gpt2core import __version__
from gpt2core.command_line import parser_with_commands
from gpt2core.errors import GPT2Error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 bad usage."""
    args = _parser().parse_args(argv)
    if args.command != "fetch" and args.model:
        if not any(os.path.isfile(os.path.join(args.model, n)) for n in ("config.json", "CURRENT")):
            print(f"error: --model {args.model}: not a model directory", file=sys.stderr)
            return 1
        os.environ["GPT2_MODEL_DIR"] = os.path.abspath(args.model)
        os.environ.pop("GPT2_MODEL_URI", None)  # nothing stands in for a model that was named
    try:
        if args.command == "invoke":
            return _invoke(args.event, args.text)
        if args.command == "fetch":
            return _fetch(args.uri, args.directory, args.sha256, args.pack)
        from handler.server import serve as run  # http.server, 40 ms
        from handler.settings import local_address

        return run(args.port, local_address(os.environ))
    except GPT2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        what = error.filename or (f"port {args.port}" if args.command == "serve" else "event")
        print(f"error: {what}: {error.strerror}", file=sys.stderr)
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
        "answer one event in this process, as a cold start does",
        "  %(prog)s events/api-generate.json\n"
        '  echo \'{"prompt": "The wolf"}\' | %(prog)s --text -',
    )
    invoke.add_argument("event", metavar="EVENT.json", help="file with the event, or - for stdin")
    invoke.add_argument("--text", action="store_true", help="print the text, not the whole reply")
    serve = add_command(
        "serve",
        "run a local HTTP server that behaves like a Function URL",
        "  %(prog)s\n  %(prog)s --port 0 --model DIR",
    )
    serve.add_argument("--port", type=_port, default=8080, help="default 8080; 0 picks a free one")
    fetch = add_command(
        "fetch",
        "download a model, verify it and make it the current one of a directory",
        "  %(prog)s hf://openai-community/gpt2 /mnt/gpt2\n"
        "  %(prog)s s3://bucket/gpt2 /mnt/gpt2 --pack int8",
    )
    fetch.add_argument(
        "uri", metavar="URI", type=_uri, help="s3://bucket/prefix or hf://owner/name[@revision]"
    )
    fetch.add_argument(
        "directory", metavar="DIR", help="becomes a volume: CURRENT, revisions/<digest>/"
    )
    fetch.add_argument(
        "--sha256",
        metavar="DIGEST",
        type=_digest,
        help="what the manifest or the weights must have",
    )
    fetch.add_argument(
        "--pack",
        nargs="?",
        const="f32",
        choices=("f32", "bf16", "int8"),
        help="publish the packed form, which opens faster (default precision f32)",
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

    # What is said on the last line anyway is not logged as well.
    function.log_invoke = _print_nothing
    function.log = lambda e, context: None if isinstance(e, GPT2Error) else log_error(e, context)
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
        model = f"model: {report.model}" if report.model else "no model needed"
        print(f"\n{start} start, milliseconds ({model})", file=sys.stderr)
        for phase, ms in report.timings_ms.items():
            print(f"  {phase:<10}{ms:>9.1f}", file=sys.stderr)
    return 1 if error else 0


def _print_nothing(*args: object) -> None:
    """In place of a log line."""


def _fetch(uri: str, directory: str, sha256: str | None, pack: str | None) -> int:
    """Print the revision's directory on stdout: a model directory for `--model` and others."""
    from handler.store.download import to_directory  # threads, hashes, a client

    os.makedirs(directory, exist_ok=True)
    fetched = to_directory(uri, os.path.abspath(directory), pin=sha256, pack=pack)
    if not fetched.fetched:
        print("unchanged: the directory has this very model", file=sys.stderr)
    print(fetched.path)
    return 0


def _payload(reply: Any) -> Any:
    """The body of an HTTP reply, or the reply itself; of an event stream, its text."""
    if isinstance(reply, dict) and "statusCode" in reply:
        is_json = reply["headers"]["Content-Type"] == "application/json"
        return json.loads(reply["body"]) if is_json else reply["body"]
    return reply


def _texts(event: Any, payload: Any) -> list[str]:
    """Every generated text of a reply, or what the reply says in its place."""
    from handler.app import function
    from handler.jobs import Generate
    from handler.sources import source_of

    if isinstance(payload, str):
        return [payload.rstrip("\n")]
    job = source_of(event).parse(function.settings)
    if isinstance(job, Generate):
        return job.request.dialect.texts(payload)
    return [payload.get("status") or json.dumps(payload)]


_URIS = "s3://bucket/prefix or hf://owner/name[@revision]"


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
