"""``python -m bindsock.testing.lab COMMAND ...``: run a command that can build the laboratory, without being root.

It becomes root of a user namespace, which is only possible before a process has threads, and then executes the command.
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
