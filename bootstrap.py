"""The function's entry point on Lambda: as a script, because `python -m` imports runpy, 4 ms."""

import sys

from handler.runtime import main

sys.exit(main())
