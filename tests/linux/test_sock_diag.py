"""Listing the subflows of all connections, without a kernel."""

from __future__ import annotations

import socket
import sys
import threading
import time

from bindsock.kernel.linux.mptcp import sock_diag
from bindsock.kernel.linux.netlink import Channel

ENTRIES = 3_000


class Many(Channel):
    """Many TCP connections, none of which is multipath."""

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        entry = sock_diag._DIAG_ENTRY.pack(socket.AF_INET, 1, bytes(2), bytes(2), bytes(16), bytes(16), 0)
        return [entry] * ENTRIES


def test_another_thread_gets_the_interpreter_while_a_long_list_is_parsed() -> None:
    """The thread of the event loop would have to wait until the end, or for the switch interval at each system call."""
    turns = 0
    before = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        parsing = threading.Thread(target=sock_diag.subflows, args=(Many(),))
        parsing.start()
        while parsing.is_alive():
            turns += 1
            time.sleep(0)
    finally:
        sys.setswitchinterval(before)
    assert turns > 10
