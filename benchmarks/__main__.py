"""``python -m benchmarks``: the cost of bindsock, compared with other software in the same run."""

from __future__ import annotations

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
