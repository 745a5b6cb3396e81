"""The command `python -m jaxdp.plan`."""

import sys

from .trainer import planner

if __name__ == "__main__":
    sys.exit(planner.main(sys.argv[1:]))
