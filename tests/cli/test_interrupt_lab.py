"""The commands and Ctrl-C."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import urllib.parse
from typing import Any

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


DEAF = """\
import signal, socket, sys, time
def getaddrinfo(*arguments, **options):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # like a call of the C library, which no signal ends
    print("asked", file=sys.stderr, flush=True)
    time.sleep(3600)
socket.getaddrinfo = getaddrinfo
from bindsock.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["explain nope.invalid", "demo nope.invalid", "proxy --listen 127.0.0.1:0"])
def test_ctrl_c_does_not_wait_for_a_name_server(lab: Lab, command: str) -> None:
    deaf = [sys.executable, "-c", DEAF, *command.split()]
    with subprocess.Popen(deaf, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if command.startswith("proxy"):
                port = int(process.stdout.readline().split()[-1])
                client = socket.create_connection(("127.0.0.1", port), timeout=30)
                client.sendall(b"CONNECT nope.invalid:80 HTTP/1.1\r\n\r\n")
            while "asked" not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()
            if command.startswith("proxy"):
                client.close()


@pytest.mark.parametrize("end", ["ctrl-c", "normal"])
def test_the_end_of_run_does_not_wait_for_the_name_servers_of_its_proxy(lab: Lab, end: str) -> None:
    program = ["sh", "-c", 'echo "$http_proxy"; read line']
    deaf = [sys.executable, "-c", DEAF, "run", "--proxy", "--quiet", "--", *program]
    piped: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(deaf, text=True, start_new_session=True, **piped) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            proxy = urllib.parse.urlsplit(process.stdout.readline().strip())
            secret = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
            with socket.create_connection(("127.0.0.1", proxy.port or 0), timeout=30) as client:
                client.sendall(f"CONNECT nope.invalid:80 HTTP/1.1\r\nProxy-Authorization: Basic {secret}\r\n\r\n".encode())
                while "asked" not in process.stderr.readline():
                    assert process.poll() is None
                if end == "ctrl-c":
                    process.send_signal(signal.SIGINT)
                    assert process.wait(30) == -signal.SIGINT
                else:
                    process.stdin.close()
                    assert process.wait(30) == 1  # of read, at the end of its input
        finally:
            process.kill()
