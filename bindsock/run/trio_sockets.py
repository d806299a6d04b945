"""Notes what becomes of the connections of a trio run."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import trio

from bindsock.anyio import TransportFactory, install_trio_socket_factory
from bindsock.anyio._trio_network import running_network
from bindsock.anyio._trio_sockets import BoundSocket, BoundSocketFactory
from bindsock.errors import BindsockError
from bindsock.run.sockets import outcome_of

if TYPE_CHECKING:
    from bindsock.anyio._trio_network import TrioNetwork
    from bindsock.run.ledger import Ledger
    from bindsock.run.policy import RunPolicy


def install_in_run(policy: RunPolicy, ledger: Ledger) -> None:
    """Let every socket of this trio run leave by the effective interface."""
    factory = TransportFactory(policy.preferences, interface=policy.interface, better_path=policy.better_path)
    install_trio_socket_factory(factory)
    trio.socket.set_custom_socket_factory(_CountingFactory(running_network(), ledger))


class _CountingSocket(BoundSocket):
    def __init__(self, sock: socket.socket, network: TrioNetwork, ledger: Ledger) -> None:
        super().__init__(sock, network)
        self._ledger = ledger

    async def connect(self, address: Any) -> None:
        try:
            await super().connect(address)
        except BindsockError as error:
            self._ledger.note("refused", "trio", type(error).__name__)
            raise
        outcome, detail = outcome_of(self._plain)
        self._ledger.note(outcome, "trio", detail)


class _CountingFactory(BoundSocketFactory):
    def __init__(self, network: TrioNetwork, ledger: Ledger) -> None:
        super().__init__(network)
        self._ledger = ledger

    def socket(
        self,
        family: socket.AddressFamily | int = socket.AF_INET,
        type: socket.SocketKind | int = socket.SOCK_STREAM,
        proto: int = 0,
    ) -> trio.socket.SocketType:
        return _CountingSocket(socket.socket(family, type, proto), self._network, self._ledger)
