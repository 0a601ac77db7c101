"""Run the command line with ``python -m sfuda_bench``."""

import sys

from sfuda_bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
