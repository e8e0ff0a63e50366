"""`python -m sweeps`: the commands of `sweeps.cli`. Called by the shell and by `sweeps.launcher` for its workers."""

import sys

from sweeps.cli import main

if __name__ == "__main__":
    sys.exit(main())
