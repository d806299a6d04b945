"""What is told of multipath connections."""

from __future__ import annotations

from dataclasses import dataclass

from bindsock.model.network import IPAddress


@dataclass(frozen=True, slots=True)
class Subflow:
    """One of the TCP connections of which a multipath connection consists."""

    local: IPAddress
    local_port: int
    remote: IPAddress
    remote_port: int
    interface: str | None = None
    """The name of the interface that has the local address now, if one has."""


@dataclass(frozen=True, slots=True)
class Multipath:
    """Whether a connection that asked for multipath has got it."""

    real: bool
    """``False`` where it is plain TCP: it never asked, or this system, the peer or something in between does not speak it."""
    subflows: tuple[Subflow, ...] = ()
    """Those that are established."""

    def __bool__(self) -> bool:
        return self.real


@dataclass(frozen=True, slots=True)
class Endpoints:
    """By which the system adds subflows to every multipath connection, whatever that is bound to."""

    addresses: tuple[IPAddress, ...] = ()
    """Local addresses, each of an interface."""
    unbound: tuple[IPAddress, ...] = ()
    """Those of them whose subflows are bound to no interface, and so follow the routes."""
    follows_peer: bool = False
    """Whether it connects to addresses that the peer announces, by whatever route leads there."""
