"""``python -m benchmarks``: what bindsock costs, each figure with what stands beside it in the same run."""

from __future__ import annotations

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
