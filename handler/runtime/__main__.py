"""The Lambda runtime, and the image's entry point: python -m handler.runtime [HANDLER]

Without a Runtime API, as in a plain `docker run`, it starts the local HTTP server.

For example:
  python -m handler.runtime
  PORT=9000 python -m handler.runtime package.module.function
"""

import os
import sys

DEFAULT_HANDLER = "handler.app.lambda_handler"
LOCAL_PORT = 8080


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
    from handler.runtime.loop import load
    from handler.server import serve  # http.server, 40 ms: not on Lambda
    from handler.settings import local_address

    port = int(os.environ.get("PORT", LOCAL_PORT))
    return serve(port, local_address(os.environ), load(name))


if __name__ == "__main__":
    sys.exit(main())
