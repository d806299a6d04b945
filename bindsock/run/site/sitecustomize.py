"""Loaded by the Python processes of a program under ``bindsock run``, before anything of the program's.

Old interpreters come here as well: this file has the syntax of all of them.
"""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.stderr.write("bindsock run: %s is older than Python 3.11 and cannot be covered\n" % sys.executable)  # noqa: UP031
    sys.stderr.flush()
    os._exit(3)

import bindsock_run_start  # type: ignore[import-not-found]  # noqa: F401
