"""``python -m bindsock.testing.lab COMMAND ...``: run a command where the laboratory can be built, without being root.

It becomes root of a user namespace, which a process can do only before it has threads, and then the command.
"""

from __future__ import annotations

import os
import sys

from ._namespaces import LabUnavailable, enter_user_namespace


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: python -m bindsock.testing.lab COMMAND [ARGUMENT ...]")
    try:
        enter_user_namespace()
        os.execvp(sys.argv[1], sys.argv[1:])
    except (LabUnavailable, OSError) as exc:
        sys.exit(f"bindsock.testing.lab: {exc}")


if __name__ == "__main__":
    main()
