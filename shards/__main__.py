"""`python -m shards`."""

import sys

from shards.cli import main

if __name__ == "__main__":  # worker processes import this module too
    sys.exit(main())
