"""`python -m lvlm`: see `lvlm.cli`."""

import sys

from lvlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
