"""``python -m bindsock``."""

import sys

from bindsock.cli import main

if __name__ == "__main__":
    sys.exit(main())
