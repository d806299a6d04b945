"""Answers questions about connections and decisions: which interface, which subflows, and why."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

from bindsock.model.network import FAMILIES
from bindsock.model.subflows import Multipath
from bindsock.netmon.no_interface import no_effective_interface

if TYPE_CHECKING:
    import asyncio

    from bindsock.kernel import Kernel
    from bindsock.model.decision import Decision
    from bindsock.model.network import Interface, Target
    from bindsock.model.subflows import Subflow
    from bindsock.routing.effective import Decider


class Inspector:
    """Answers questions from the newest reading of the network.

    :param kernel: the kernel to ask about sockets
    :param asking: a context manager that provides the newest decider
    """

    def __init__(self, kernel: Kernel, asking: Callable[[], AbstractContextManager[Decider]]) -> None:
        self._kernel = kernel
        self._asking = asking

    def explain(self, destination: Target | str) -> Decision:
        """The decision for a destination or a family, with the reason for each interface.

        :raises TypeError: the destination is neither an address nor a family
        :raises ValueError: the destination is a name, not an address, or another family
        :raises OSError: the network could not be read
        """
        target = ip_address(destination) if isinstance(destination, str) else destination
        if isinstance(target, int):
            _check_family(target)
        elif not isinstance(target, IPv4Address | IPv6Address):
            raise TypeError(f"explain() takes an address or a family, not {destination!r}")
        with self._asking() as decider:
            return decider.decide(target)

    def effective_interface(self, family: int) -> Interface:
        """The effective interface of a family; with ``AF_UNSPEC`` that of IPv4, or else of IPv6.

        :raises NoEffectiveInterface: there is none
        :raises ValueError: the family is another one
        :raises OSError: the network could not be read
        """
        if family != socket.AF_UNSPEC:
            _check_family(family)
        families = [f for f in FAMILIES if family in (socket.AF_UNSPEC, f)]
        with self._asking() as decider:
            decisions = tuple(decider.decide(f) for f in families)
            for decision in decisions:
                if decision.interface is not None:
                    return decision.interface
            raise no_effective_interface("the default route", decisions, self._kernel, decider.network)

    def interface_of(self, connection: asyncio.BaseTransport | asyncio.StreamWriter | socket.socket) -> str | None:
        """The name of the interface that a connection is bound to; ``None`` if it is unbound or closed.

        :raises TypeError: it is neither a transport, a stream writer nor a socket
        """
        sock: Any = connection
        if not _is_socket(connection):
            name = _extra_info(connection, "interface")
            if isinstance(name, str):
                return name
            sock = _extra_info(connection, "socket")
        if sock is None or sock.fileno() == -1:
            return None
        subflows = self._subflows(sock).subflows
        if subflows:
            return self._interface_among(subflows)
        index = self._kernel.bound(sock)
        if index is None:
            return None
        with self._asking() as decider:
            interface = decider.network.interfaces.get(index)
        return interface.name if interface is not None else None

    def multipath_of(self, connection: asyncio.BaseTransport | asyncio.StreamWriter | socket.socket) -> Multipath:
        """Whether multipath was negotiated for a connection, and its subflows.

        :raises TypeError: as :meth:`interface_of`
        """
        return self._subflows(connection if _is_socket(connection) else _extra_info(connection, "socket"))

    def _subflows(self, sock: Any) -> Multipath:
        paths = self._kernel.multipath
        subflows = paths.subflows(sock) if paths is not None and sock is not None else None
        if subflows is None:
            return Multipath(False)
        with self._asking() as decider:
            owners = [decider.network.owner_of(subflow.local) for subflow in subflows]
        names = [owner.name if owner is not None else None for owner in owners]
        return Multipath(True, tuple(dataclasses.replace(s, interface=n) for s, n in zip(subflows, names, strict=True)))

    def _interface_among(self, subflows: tuple[Subflow, ...]) -> str | None:
        """The interface to report for a multipath socket: the effective one if it has a subflow, else that of the newest subflow.

        The socket itself stays bound to the interface of its first subflow.
        """
        effective = self.explain(subflows[-1].remote).interface
        names = [subflow.interface for subflow in subflows]
        return effective.name if effective is not None and effective.name in names else names[-1]


def _is_socket(connection: object) -> bool:
    """Whether it is a socket, or a transport's view of its own socket; otherwise it must be able to tell its socket.

    :raises TypeError: it cannot
    """
    if isinstance(connection, socket.socket):
        return True
    if hasattr(connection, "get_extra_info"):
        return False
    if hasattr(connection, "getsockopt"):
        return True
    raise TypeError(f"a transport, a stream writer or a socket is needed, not {connection!r}")


def _check_family(family: int) -> None:
    if family not in FAMILIES:
        raise ValueError(f"the family must be AF_INET or AF_INET6, not {family!r}")


def _extra_info(connection: Any, name: str) -> object:
    try:
        return connection.get_extra_info(name)
    except (AttributeError, OSError):  # closed TLS transports of CPython (Lib/asyncio/sslproto.py) and uvloop
        return None
