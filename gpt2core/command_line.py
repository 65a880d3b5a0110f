"""Shared by the command lines of `gpt2core` and `handler`: a parser whose help has examples."""

import argparse
import os
import sys
from collections.abc import Callable

AddCommand = Callable[[str, str, str], argparse.ArgumentParser]


def parser_with_commands(
    script: str, module: str, version: str, description: str, example: str
) -> tuple[argparse.ArgumentParser, AddCommand]:
    """Return the parser, and a function that adds a command with its summary and examples.

    Help shows `script` if the installed script runs, else `python -m module`. In examples
    `%(prog)s` is replaced by the command.
    """
    is_script = os.path.basename(sys.argv[0]) == script
    parser = argparse.ArgumentParser(
        prog=script if is_script else f"python -m {module}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{script} {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add_command(name: str, summary: str, examples: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    return parser, add_command
