"""The command line of the core: `python -m gpt2core generate | pack | info | verify`.

GPT2_KERNELS selects the kernels: auto, native or numpy.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence

from gpt2core import __version__
from gpt2core.command_line import parser_with_commands
from gpt2core.errors import GPT2Error
from gpt2core.files.names import DEMO_DIR
from gpt2core.startup.slim_typing import Any

# ECMA-48, "Select graphic rendition": foreground colors.
RED, GREEN, YELLOW = 31, 32, 33


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 for success, 1 for failure, 2 for bad usage."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "info":
            return _info(args.model)
        if args.command == "verify":
            return _verify(args.model)
        if args.command == "pack":
            return _pack(args.src, args.dst, args.precision)
        return _generate(args.prompt, args.max_new_tokens, args.model, args.allow_special)
    except GPT2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, UnicodeEncodeError) as error:
        if args.command == "pack":
            print(f"error: cannot write {args.dst}: {error}", file=sys.stderr)
            return 1
        # The interpreter flushes stdout again at exit, which must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader closed the pipe, as `head` does
            print(f"error: cannot write the text: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser, command = parser_with_commands(
        "gpt2core",
        "gpt2core",
        __version__,
        "GPT-2 from the shell: generate text, inspect and pack model directories.",
        '%(prog)s generate "Once upon a time"',
    )

    generate = command(
        "generate",
        "continue a prompt; each token is printed when it is generated",
        '  %(prog)s "Once upon a time" -n 40\n  %(prog)s "The wolf" --model DIR',
    )
    generate.add_argument("prompt", help="text to continue")
    generate.add_argument(
        "-n",
        "--max-new-tokens",
        type=int,
        default=20,
        metavar="N",
        help="at most N new tokens (default 20); the text also ends at the model's context",
    )
    generate.add_argument(
        "--model", default=DEMO_DIR, metavar="DIR", help="model directory (default: the demo)"
    )
    generate.add_argument(
        "--allow-special",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="recognize special tokens such as <|endoftext|> in the prompt (default: yes)",
    )
    pack = command(
        "pack",
        "write a model directory that opens faster: packed weights, compiled tokenizer",
        "  %(prog)s gpt2 gpt2-int8 --precision int8",
    )
    pack.add_argument("src", metavar="SRC", help="model directory in Hugging Face layout")
    pack.add_argument(
        "dst",
        metavar="DST",
        help="directory to write; created if needed, and a packed model in it is replaced",
    )
    pack.add_argument(
        "--precision", choices=("f32", "bf16", "int8"), default="f32", help="default f32, exact"
    )
    info = command(
        "info",
        "show the kernels in use, and the contents of a model directory",
        "  %(prog)s\n  %(prog)s gpt2-int8",
    )
    info.add_argument("model", nargs="?", metavar="DIR", help="model directory")
    verify = command(
        "verify",
        "compare a model with published results of GPT-2; exit code 0 if all agree",
        "  %(prog)s gpt2",
    )
    verify.add_argument("model", metavar="DIR", help="model directory")
    return parser


def _generate(prompt: str, max_new_tokens: int, model: str, allow_special: bool) -> int:
    from gpt2core.files.names import follow_current
    from gpt2core.startup import prefetch, slim_numpy

    model = follow_current(model)
    os.environ.setdefault(*slim_numpy.BLAS_TIMEOUT)
    prefetch.begin(model)
    slim_numpy.install()
    from gpt2core.engine import Engine  # not for --help
    from gpt2core.generation import Token

    engine = Engine.open(model, kernels=_kernels())
    items = engine.stream(prompt, max_new_tokens, allow_special=allow_special)
    print(prompt, end="", flush=True)
    for item in items:
        if isinstance(item, Token):
            print(item.text, end="", flush=True)
    print()
    return 0


def _kernels() -> str:
    return os.environ.get("GPT2_KERNELS") or "auto"


def _info(model: str | None) -> int:
    from gpt2core.engine import Engine
    from gpt2core.files.checkpoint import expected_shapes
    from gpt2core.kernels import choose_native

    native = choose_native()
    if _kernels() == "numpy":
        print("kernels:    NumPy, set by GPT2_KERNELS")
    elif native.instruction_set:
        from gpt2core.kernels.native import usable_threads

        print(f"kernels:    native, {native.instruction_set}, {usable_threads()} threads")
    else:
        print(f"kernels:    NumPy: the native kernels {native.reason}")
    if model is None:
        return 0
    engine = Engine.open(model, kernels=_kernels())
    config = engine.config
    parameters = sum(math.prod(shape) for shape in expected_shapes(config).values())
    print(
        f"network:    {parameters / 1e6:.1f} million parameters: {config.n_layer} layers of "
        f"{config.n_embd} in {config.n_head} heads, {config.activation_function}, "
        f"{config.vocab_size} tokens, {config.n_positions} positions"
    )
    print(f"weights:    {engine.describe_weights()}")
    try:
        print(
            f"tokenizer:  {engine.tokenizer.implementation}, {engine.tokenizer.vocab_size} tokens"
        )
    except GPT2Error as error:
        print(f"tokenizer:  {error}")
    return 0


def _verify(model: str) -> int:
    """Returns 0 if at least one comparison agrees and none differs."""
    from gpt2core.engine import Engine
    from gpt2core.verify import count_checks, published_name, read_published, verify

    published = read_published()
    engine = Engine.open(model, kernels=_kernels())
    name = published_name(engine, published)
    config = engine.config
    shape = f"{config.n_layer} layers of {config.n_embd} in {config.n_head} heads"
    if name is None:
        known = ", ".join(published["shapes"])
        print(
            f"not checked: no published results for {shape} and {config.vocab_size} tokens, "
            f"only for {known}"
        )
        return 1
    print(f"compared with {name}: {shape}, {engine.describe_weights()}")
    if not engine.describe_weights().startswith("F32"):
        print("The published results are for float32 weights; other precisions may differ.")
    counts = {True: 0, False: 0, None: 0}
    words = {True: ("agrees", GREEN), False: ("differs", RED), None: ("not checked", YELLOW)}
    with _bar("verify", count_checks(name, published), " results") as bar:
        for check in verify(engine, name, published):
            counts[check.agrees] += 1
            word, color = words[check.agrees]
            bar.write(f"{_colored(f'{word:<13}', color)}{check.detail}", file=sys.stdout)
            sys.stdout.flush()
            bar.update()
    print(f"{counts[True]} agree, {counts[False]} differ, {counts[None]} not checked")
    return 0 if counts[True] and not counts[False] else 1


def _pack(src: str, dst: str, precision: str) -> int:
    from gpt2core.files.names import PACKED_FILE
    from gpt2core.pack import pack

    is_replaced = os.path.exists(os.path.join(dst, PACKED_FILE))
    with _bar(dst, None, "B") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        packed = pack(src, dst, precision, show)
    if packed.tokenizer_problem:
        print(f"tokenizer copied, not compiled: it {packed.tokenizer_problem}", file=sys.stderr)
    size = sum(file.size for file in packed.files.values())
    done = "replaced the packed model" if is_replaced else "packed"
    print(f"{dst}: {done}, {size / 1e6:.1f} MB", file=sys.stderr)
    print(f"SHA-256 of the manifest (ModelSha256 pins it): {packed.digest}", file=sys.stderr)
    return 0


def _bar(description: str, total: int | None, unit: str) -> Any:
    """A progress bar on stderr, shown only on a terminal."""
    from tqdm import tqdm  # a dependency of huggingface_hub

    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        disable=None,
        leave=False,
        dynamic_ncols=True,
    )


def _colored(text: str, color: int) -> str:
    """Color the text if stdout is a terminal and NO_COLOR is not set (no-color.org)."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{color}m{text}\x1b[0m"


if __name__ == "__main__":
    sys.exit(main())
