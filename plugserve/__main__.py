"""`python -m plugserve` is `plugserve`."""

import sys

from plugserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
