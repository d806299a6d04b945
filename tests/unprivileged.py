"""Give up every privilege: become the user nobody, or drop all capabilities where that user does not exist.

A user namespace made by an ordinary user has a single user, its root. Without capabilities, that is an ordinary user.
``python -m tests.unprivileged COMMAND ...`` runs a command without privileges.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path

NOBODY = 65534
_PR_CAPBSET_DROP = 24
_CAP_SETFCAP = 31
_CAPABILITY_VERSION_3 = 0x20080522


def may_become_nobody() -> bool:
    """Whether the user nobody exists, and this process may become it."""
    if os.geteuid() != 0:
        return False
    ranges = (map(int, line.split()) for line in Path("/proc/self/uid_map").read_text("ascii").splitlines())
    return any(first <= NOBODY < first + length for first, _, length in ranges)


def drop_privileges() -> None:
    """Give up all privileges for good, also for programs that this process executes later."""
    if may_become_nobody():
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)  # the saved user ID, too; it also drops every capability
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        last = int(Path("/proc/sys/kernel/cap_last_cap").read_text("ascii"))
        # Otherwise root would get its capabilities back in a program that it executes. Such a program may still make a user
        # namespace in which it is root, as any user may; root needs CAP_SETFCAP for it (linux kernel/user_namespace.c,
        # verify_root_map).
        for capability in set(range(last + 1)) - {_CAP_SETFCAP}:
            _check(libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0))
    _check(libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)))


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


if __name__ == "__main__":
    drop_privileges()
    os.execvp(sys.argv[1], sys.argv[1:])
