"""The entry point of the image: a script, because `python -m` imports runpy, which takes 4 ms.

bootstrap.py [package.module.function]      this project's Lambda runtime
bootstrap.py awslambdaric HANDLER           AWS's runtime client
bootstrap.py serve | invoke | fetch …       the command line of `python -m handler`
"""

import sys

command = sys.argv[1] if len(sys.argv) > 1 else ""
if command == "awslambdaric":
    from awslambdaric.__main__ import main

    main(sys.argv[1:])
elif command in ("serve", "invoke", "fetch"):
    from handler.__main__ import main

    sys.exit(main())
else:
    from handler.runtime.__main__ import main

    sys.exit(main())
