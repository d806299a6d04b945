"""Multipath connections for a :class:`~bindsock.testing.SimulatedKernel`; the test controls the subflows."""

from __future__ import annotations

import errno
import os
import socket
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from bindsock.kernel import Background, RemovalReason
from bindsock.model.network import Interface, IPAddress, family_of
from bindsock.model.subflows import Endpoints, Subflow, Traffic
from bindsock.options import known_keywords_only


class SimulatedPathManager:
    """A :class:`bindsock.kernel.PathManager` that the test controls.

    :param joins: whether an ordered subflow is established at once
    """

    @known_keywords_only
    def __init__(self, *, joins: bool = True) -> None:
        self.joins = joins
        self.background: Background | None = None
        """Not used: every order is carried out at once."""
        self.connections: weakref.WeakKeyDictionary[socket.socket, list[Subflow]] = weakref.WeakKeyDictionary()
        """The sockets that count as multipath ones, and their established subflows."""
        self.indexes: dict[Subflow, int] = {}
        """The indices of the interfaces that subflows are bound to, if the test sets them."""
        self.systems: set[IPAddress] = set()
        """The local addresses of subflows that the system itself made."""
        self.orders: list[tuple[str, str]] = []
        """The calls: ("add", interface), ("arrived", address), ("prompt", address), ("backup", address), ("no backup", address),
        ("remove", address), ("release", "") or ("sweep", "")."""
        self.reasons: list[str] = []
        """Why subflows were removed, in the order of the removals."""
        self.privileged = True
        self.tells_peer = True
        """Whether a working subflow can tell the peer which subflows are lost or are backups."""
        self.confirms = True
        """Whether the peer has confirmed the subflows."""
        self.needed = False
        """The result of :meth:`release` and :meth:`sweep`: whether something is left to undo."""
        self.announced: Endpoints = Endpoints()
        """The result of :meth:`endpoints`."""
        self.silences: weakref.WeakKeyDictionary[socket.socket, float] = weakref.WeakKeyDictionary()
        """The results of :meth:`silence`, in seconds."""
        self.traffics: dict[IPAddress, Traffic] = {}
        """The results of :meth:`traffic`, by local address; otherwise it is ``None``."""

    def protocol(self, family: int) -> int | None:
        """``None``, since there are no real multipath sockets."""
        return None

    def endpoints(self, done: Callable[[Endpoints | OSError], object]) -> None:
        done(self.announced)

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

    def add(self, sock: socket.socket, interface: Interface, failed: Callable[[OSError], object]) -> IPAddress:
        self._demand_privilege()
        self.orders.append(("add", interface.name))
        subflows = self.connections[sock]
        family = family_of(subflows[0].remote) if subflows else sock.family
        local = interface.usable_addresses(family)[0]
        if self.joins:
            self.establish(sock, local)
        return local

    def establish(self, sock: socket.socket, local: IPAddress) -> None:
        """Let a subflow from this address join."""
        subflows = self.connections[sock]
        subflows.append(replace(subflows[0], local=local))

    def arrived(self, sock: socket.socket, address: IPAddress) -> None:
        self.orders.append(("arrived", str(address)))

    def prompt(self, sock: socket.socket, address: IPAddress, failed: Callable[[OSError], object]) -> bool:
        if not self.confirms:
            return False
        self._demand_privilege()
        self.orders.append(("prompt", str(address)))
        return True

    def traffic(self, sock: socket.socket, address: IPAddress) -> Traffic | None:
        return self.traffics.get(address)

    def set_backup(
        self, sock: socket.socket, address: IPAddress, done: Callable[[bool | OSError], object], *, backup: bool
    ) -> None:
        self._demand_privilege()
        self.orders.append(("backup" if backup else "no backup", str(address)))
        done(self.tells_peer and address not in self.systems)

    def remove(
        self, sock: socket.socket, address: IPAddress, why: RemovalReason, done: Callable[[bool | OSError], object]
    ) -> bool:
        if (address in self.systems and why == "left") or (why == "lost" and not self.tells_peer):
            return False
        self._demand_privilege()
        self.orders.append(("remove", str(address)))
        self.reasons.append(why)
        self.connections[sock] = [subflow for subflow in self.connections[sock] if subflow.local != address]
        return True

    def release(self, sock: socket.socket) -> bool:
        self.orders.append(("release", ""))
        return self.needed

    def sweep(self, done: Callable[[bool], object]) -> None:
        self.orders.append(("sweep", ""))
        done(self.needed)

    def _demand_privilege(self) -> None:
        if not self.privileged:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
