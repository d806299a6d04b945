"""Multipath connections of a :class:`~bindsock.testing.SimulatedKernel`: which subflows there are is the test's affair."""

from __future__ import annotations

import errno
import os
import socket
import weakref
from collections.abc import Collection, Sequence
from dataclasses import replace

from bindsock.kernel import RemovalReason
from bindsock.model.network import Interface, IPAddress, family_of
from bindsock.model.subflows import Endpoints, Subflow


class SimulatedPathManager:
    """A :class:`bindsock.kernel.PathManager` that does what the test says.

    :param joins: whether a subflow that is ordered is established at once
    """

    def __init__(self, *, joins: bool = True) -> None:
        self.joins = joins
        self.connections: weakref.WeakKeyDictionary[socket.socket, list[Subflow]] = weakref.WeakKeyDictionary()
        """The established subflows of the sockets that are to be taken for multipath ones."""
        self.indexes: dict[Subflow, int] = {}
        """To which interfaces the subflows are bound, where the test says so."""
        self.systems: set[IPAddress] = set()
        """Local addresses of subflows that the system has made by itself."""
        self.orders: list[tuple[str, str]] = []
        """What was ordered, as ("add", interface), ("arrived" or "remove", address) ("release", "") or ("sweep", "")."""
        self.privileged = True
        self.needed = False
        """Whether something is left after :meth:`release` and :meth:`sweep`."""
        self.announced: Endpoints = Endpoints()
        """What :meth:`endpoints` says."""
        self.silences: weakref.WeakKeyDictionary[socket.socket, float] = weakref.WeakKeyDictionary()
        """What :meth:`silence` says, in seconds."""

    def protocol(self, family: int) -> int | None:
        """None: there are no real multipath sockets."""
        return None

    def endpoints(self) -> Endpoints:
        return self.announced

    def subflows(self, sock: socket.socket) -> Sequence[Subflow] | None:
        return self.connections.get(sock)

    def silence(self, sock: socket.socket) -> float:
        return self.silences.get(sock, 0.0)

    def bound(self, sock: socket.socket, subflow: Subflow) -> int | None:
        return self.indexes.get(subflow, 0)

    def retain(self, interfaces: Collection[int]) -> None:
        pass

    def register(self, sock: socket.socket) -> None:
        pass

    def add(self, sock: socket.socket, interface: Interface) -> IPAddress:
        self._demand_privilege()
        self.orders.append(("add", interface.name))
        first = self.connections[sock][0]
        local = interface.usable_addresses(family_of(first.remote))[0]
        if self.joins:
            self.establish(sock, local)
        return local

    def establish(self, sock: socket.socket, local: IPAddress) -> None:
        """A subflow from this address has joined."""
        subflows = self.connections[sock]
        subflows.append(replace(subflows[0], local=local))

    def arrived(self, sock: socket.socket, address: IPAddress) -> None:
        self.orders.append(("arrived", str(address)))

    def remove(self, sock: socket.socket, address: IPAddress, why: RemovalReason) -> bool:
        if address in self.systems and why == "left":
            return False
        self._demand_privilege()
        self.orders.append(("remove", str(address)))
        self.connections[sock] = [subflow for subflow in self.connections[sock] if subflow.local != address]
        return True

    def release(self, sock: socket.socket) -> bool:
        self.orders.append(("release", ""))
        return self.needed

    def sweep(self) -> bool:
        self.orders.append(("sweep", ""))
        return self.needed

    def _demand_privilege(self) -> None:
        if not self.privileged:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
