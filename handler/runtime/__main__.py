"""The Lambda runtime, and the image's entry point: python bootstrap.py [HANDLER]

Without a Runtime API, as in a plain `docker run`, it starts the local HTTP server.

For example:
  python bootstrap.py
  python -m handler.runtime
  PORT=9000 python bootstrap.py package.module.function
"""

import os
import sys

DEFAULT_HANDLER = "handler.app.lambda_handler"


def main() -> int:
    """Run the function that the command line names, else this project's; returns an exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_HANDLER
    if name in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    address = os.environ.get("AWS_LAMBDA_RUNTIME_API")
    if address:
        from handler.runtime import loop

        return loop.main(name, address)
    from gpt2core.errors import GPT2Error
    from handler.runtime.loop import load

    try:
        from handler.server import main as serve  # http.server, 40 ms: not on Lambda

        return serve(load(name))
    except GPT2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
