"""Listing the subflows of all connections, without a kernel."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from bindsock.kernel.linux.mptcp import sock_diag
from bindsock.kernel.linux.netlink import Channel

ENTRIES = 3_000


class Many(Channel):
    """Many TCP connections, none of which is multipath."""

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        entry = sock_diag._DIAG_ENTRY.pack(socket.AF_INET, 1, bytes(2), bytes(2), bytes(16), bytes(16), 0)
        return [entry] * ENTRIES


def test_the_interpreter_is_left_to_other_threads_while_a_long_list_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread of the event loop would have to wait until the end, or for the switch interval at each system call."""
    pauses: list[float] = []
    monkeypatch.setattr(sock_diag, "time", SimpleNamespace(sleep=pauses.append))
    sock_diag.subflows(Many())
    assert len(pauses) >= 2 * ENTRIES / 100
    assert min(pauses) > 0, "it need not let go of the interpreter"
