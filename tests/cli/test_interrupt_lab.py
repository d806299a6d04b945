"""The commands and Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from bindsock.testing.lab import Lab

pytestmark = pytest.mark.lab


def test_a_command_that_is_started_with_ctrl_c_ignored_ignores_it(lab: Lab) -> None:
    """So that ``nohup`` and a shell's ``&`` work."""
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    command = [*ignoring, sys.executable, "-m", "bindsock", "watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["event"] == "state"
            process.send_signal(signal.SIGINT)
            lab.default("eth0")
            assert json.loads(process.stdout.readline())["event"] == "change"
        finally:
            process.terminate()
    assert process.returncode == -signal.SIGTERM
