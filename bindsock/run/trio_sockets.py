"""Binds the sockets of a trio run, and counts their outcomes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import trio

from bindsock.anyio import TransportFactory, install
from bindsock.anyio._trio_network import running_network
from bindsock.anyio._trio_sockets import BoundSocket, BoundSocketFactory

if TYPE_CHECKING:
    import socket

    from bindsock.anyio._trio_network import TrioNetwork
    from bindsock.run.ledger import Ledger
    from bindsock.run.policy import RunPolicy


def install_in_run(policy: RunPolicy, ledger: Ledger) -> None:
    """Let all new sockets of this trio run leave by the effective interface."""
    install(TransportFactory(policy.preferences, interface=policy.interface, better_path=policy.better_path))
    make = functools.partial(_CountingSocket, ledger=ledger)
    trio.socket.set_custom_socket_factory(BoundSocketFactory(running_network(), make))


class _CountingSocket(BoundSocket):
    def __init__(self, sock: socket.socket, network: TrioNetwork, ledger: Ledger) -> None:
        super().__init__(sock, network)
        self._ledger = ledger

    async def connect(self, address: Any) -> None:
        with self._ledger.refusals("trio"):
            await super().connect(address)
        self._ledger.note_outcome("trio", self._plain)
