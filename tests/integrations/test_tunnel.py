"""The packets in the tunnel that are held against bindsock."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from bindsock.testing.lab import Packet, Server
from tests.integrations.tunnel import nothing_through_the_tunnel

SERVER = Server()
END = Packet(1.0, "wifi0", False, "tcp", SERVER.ipv6, "fd10:1::2", 7001, 40000, 72, b"", flags=0x11, sequence=8)
OVERTAKEN = dataclasses.replace(END, flags=0x10)
BY_UPLINK = Packet(1.0, "wifi0", True, "tcp", "fd10:1::2", SERVER.ipv6, 40000, 7001, 72, b"", flags=0x10, acknowledgement=9)
BY_TUNNEL = dataclasses.replace(BY_UPLINK, interface="tun0")
DATA_BY_TUNNEL = dataclasses.replace(BY_TUNNEL, payload=b"x")


class Tapped:
    """A laboratory in which these packets are seen."""

    server = SERVER

    def __init__(self, packets: list[Packet]) -> None:
        self.packets = packets
        self.dropped = 0

    @contextlib.contextmanager
    def tap(self, *, interface: str | None = None, outgoing: bool | None = True, protocol: str | None = None) -> Iterator[Any]:
        yield Tapped([p for p in self.packets if interface in (None, p.interface) and outgoing in (None, p.outgoing)])


def check(*packets: Packet) -> None:
    lab: Any = Tapped(list(packets))
    with nothing_through_the_tunnel(lab):
        pass


def test_what_time_wait_answers_to_overtaken_segments_is_the_kernels_own() -> None:
    check(END, BY_UPLINK, OVERTAKEN, BY_TUNNEL)


@pytest.mark.parametrize(
    "packets",
    [
        (END, BY_TUNNEL),
        (OVERTAKEN, END, BY_TUNNEL),
        (END, BY_UPLINK, BY_TUNNEL),
        (END, BY_TUNNEL, END, BY_UPLINK, OVERTAKEN, BY_TUNNEL),
        (END, BY_UPLINK, OVERTAKEN, DATA_BY_TUNNEL),
    ],
)
def test_no_other_acknowledgement_is(packets: tuple[Packet, ...]) -> None:
    with pytest.raises(AssertionError, match="packets, the first"):
        check(*packets)
