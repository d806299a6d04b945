"""What the programs of chaos report."""

from __future__ import annotations

import os
import socket

from tests.chaos.program import described, descriptors


def test_a_descriptor_is_described() -> None:
    reading, writing = os.pipe()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        assert {reading, writing, sock.fileno()} <= descriptors()
        assert described(sock.fileno()) == f"AF_INET SOCK_DGRAM 17, ('127.0.0.1', {sock.getsockname()[1]}) to None"
        assert described(reading).startswith("pipe:[")
    os.close(reading)
    os.close(writing)
    assert described(reading) == ""
