"""Programs that an ordinary user runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unprivileged import NOBODY, may_become_nobody

REPOSITORY = Path(__file__).parents[2]


def python_as_nobody(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run Python as the user nobody or, in a user namespace without that user, without any privilege.

    :param timeout: in seconds
    """
    user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if may_become_nobody() else {}
    if not user:
        arguments = "-m", "tests.unprivileged", sys.executable, *arguments
    path = os.pathsep.join(p for p in [str(REPOSITORY), *sys.path] if p)
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    for interpreter in [sys.executable, "/usr/bin/python3"]:
        command = [interpreter, *arguments]
        try:
            done = subprocess.run(
                command, cwd="/", env=environment, capture_output=True, text=True, check=False, timeout=timeout, **user
            )
        except (FileNotFoundError, PermissionError):  # the interpreter is in root's home, or does not exist
            continue
        return done
    pytest.skip("an ordinary user cannot start the interpreter")


def skip_without_user_namespaces() -> None:
    """Skip the test where the kernel does not let an ordinary user make a network namespace in a user namespace."""
    user, network = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET
    program = f"import ctypes; libc = ctypes.CDLL(None); print(libc.unshare({user}) or libc.unshare({network}))"
    if python_as_nobody("-c", program).stdout != "0\n":
        pytest.skip("an ordinary user may not make user namespaces here")
