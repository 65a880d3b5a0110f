"""The core's command line: `python -m gpt2core generate PROMPT`."""

import argparse
import os
import sys
from collections.abc import Sequence

from gpt2core import __version__
from gpt2core.errors import GPT2Error

DEMO = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "models", "demo")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 bad usage."""
    parser = argparse.ArgumentParser(prog="python -m gpt2core", description="GPT-2 in NumPy.")
    parser.add_argument("--version", action="version", version=f"gpt2core {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="continue a prompt; text appears as it is made")
    generate.add_argument("prompt", help="text to continue")
    generate.add_argument(
        "-n", "--max-new-tokens", type=int, default=20, metavar="N", help="at most (default 20)"
    )
    generate.add_argument(
        "--model", default=DEMO, metavar="DIR", help="model directory (default: the demo)"
    )
    args = parser.parse_args(argv)
    try:
        return _generate(args.prompt, args.max_new_tokens, args.model)
    except GPT2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, UnicodeEncodeError) as error:
        # The interpreter flushes stdout once more when it ends; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader left, as `head` does
            print(f"error: cannot write the text ({error})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _generate(prompt: str, max_new_tokens: int, model: str) -> int:
    from gpt2core.engine import Engine  # NumPy, 100 ms: not for --help
    from gpt2core.generate import Token

    items = Engine.open(model).stream(prompt, max_new_tokens)
    print(prompt, end="", flush=True)
    for item in items:
        if isinstance(item, Token):
            print(item.text, end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
