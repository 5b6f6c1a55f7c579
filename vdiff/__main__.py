"""`python -m vdiff`, and what `accelerate launch -m vdiff` and `torchrun -m vdiff` start."""

import sys

from vdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
