"""The command `python -m jaxdp.data`."""

import sys

from .datasets import tfds_prepare

if __name__ == "__main__":
    sys.exit(tfds_prepare.main(sys.argv[1:]))
