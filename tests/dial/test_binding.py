"""New sockets are bound to the decided interface."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address
from typing import NoReturn

import pytest

from bindsock.dial.binding import decide_and_bind
from bindsock.model.network import IPAddress
from bindsock.routing.effective import Decider, Preferences
from bindsock.testing import SimulatedKernel, network

WIFI = network("2: wifi0 wifi 192.0.2.5/24", "default via 192.0.2.1 dev wifi0")
FAR = ip_address("203.0.113.9")


def test_a_socket_for_which_nothing_can_be_decided_is_closed() -> None:
    def fail(destination: IPAddress) -> NoReturn:
        raise OSError(errno.ENOBUFS, "the system does not answer")

    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with pytest.raises(OSError, match="the system does not answer"):
        decide_and_bind(SimulatedKernel(WIFI), Decider(WIFI, Preferences(), lookups=fail), sock, FAR)
    assert sock.fileno() == -1
