"""``python -m tests.docs PAGE``: run the blocks of a page in the laboratory."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

from bindsock.testing.lab import enter_user_namespace
from tests.docs.page import Failed, Page
from tests.docs.world import ADDRESS, world
from tests.integrations.tunnel import nothing_through_the_tunnel

LEAKS = "<!--- some of this goes into the tunnel -->"
"""Marks a page that shows what happens without bindsock."""


def main(path: Path) -> int:
    enter_user_namespace()
    with tempfile.TemporaryDirectory() as directory, world(path.read_text(), Path(directory)) as lab:
        page = Page(path, Path(directory), {"lab": lab})
        try:
            with nothing_through_the_tunnel(lab, host=ADDRESS) if LEAKS not in path.read_text() else contextlib.nullcontext():
                page.run()
        except Failed as failure:
            print(failure)
            return 1
        print(f"{page.run_count} run, {len(page.skipped)} not", *page.skipped, sep="\n  ")
        return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
