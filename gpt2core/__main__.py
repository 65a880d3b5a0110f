"""The core's command line: `python -m gpt2core generate PROMPT | pack SRC DST`."""

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
    pack = commands.add_parser(
        "pack", help="make a model directory that opens faster: packed weights, compiled tokenizer"
    )
    pack.add_argument("src", metavar="SRC", help="model directory in Hugging Face layout")
    pack.add_argument("dst", metavar="DST", help="directory to write, made if it is not there")
    pack.add_argument("--precision", choices=("f32", "bf16", "int8"), default="f32")
    args = parser.parse_args(argv)
    try:
        if args.command == "pack":
            return _pack(args.src, args.dst, args.precision)
        return _generate(args.prompt, args.max_new_tokens, args.model)
    except GPT2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, UnicodeEncodeError) as error:
        if args.command == "pack":
            print(f"error: {args.dst} cannot be written ({error})", file=sys.stderr)
            return 1
        # The interpreter flushes stdout once more when it ends; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader left, as `head` does
            print(f"error: cannot write the text ({error})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _generate(prompt: str, max_new_tokens: int, model: str) -> int:
    from gpt2core import lean_numpy, read_ahead

    read_ahead.begin(model)
    lean_numpy.load()
    from gpt2core.engine import Engine  # NumPy, 30 ms: not for --help
    from gpt2core.generate import Token

    items = Engine.open(model).stream(prompt, max_new_tokens)
    print(prompt, end="", flush=True)
    for item in items:
        if isinstance(item, Token):
            print(item.text, end="", flush=True)
    print()
    return 0


def _pack(src: str, dst: str, precision: str) -> int:
    from gpt2core.pack import pack

    bar = None
    if sys.stderr.isatty():
        from tqdm import tqdm  # comes with huggingface_hub

        bar = tqdm(desc=dst, unit="B", unit_scale=True, leave=False, dynamic_ncols=True)

    def show(done: int, total: int) -> None:
        if bar is not None:
            bar.total = total
            bar.update(done - bar.n)

    packed = pack(src, dst, precision, show)
    if bar is not None:
        bar.close()
    if packed.tokenizer_problem:
        print(f"the tokenizer is copied: it {packed.tokenizer_problem}", file=sys.stderr)
    size = sum(file.size for file in packed.files.values())
    print(f"{dst}: {size / 1e6:.1f} MB, manifest {packed.digest}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
