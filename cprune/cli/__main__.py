"""`python -m cprune.cli` does what `cprune` does."""

import sys

from cprune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
