"""Loaded by all Python processes under ``bindsock run``, before the program.

Old interpreters load it, too, so its syntax must be valid for all of them.
"""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.stderr.write("bindsock run: %s is older than Python 3.11 and cannot be covered\n" % sys.executable)  # noqa: UP031
    sys.stderr.flush()
    os._exit(3)

import bindsock_run_start  # type: ignore[import-not-found]  # noqa: F401
