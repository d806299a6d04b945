"""Multipath connections and their subflows."""

from __future__ import annotations

from dataclasses import dataclass

from bindsock.model.network import IPAddress


@dataclass(frozen=True, slots=True)
class Subflow:
    """One of the TCP connections that make up a multipath connection."""

    local: IPAddress
    local_port: int
    remote: IPAddress
    remote_port: int
    interface: str | None = None
    """The name of the interface that has the local address now, if there is one."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is under way by some of the subflows of a connection."""

    pending: bool
    """Data of this side wait to be sent or acknowledged."""
    silence: float
    """Seconds since data of the peer have arrived."""
    unanswered: float
    """Seconds since an acknowledgement has arrived."""
    round_trip: float
    """The estimated time, in seconds, until the peer's answer to a segment arrives."""


@dataclass(frozen=True, slots=True)
class Multipath:
    """Whether multipath was negotiated for a connection, and its subflows."""

    real: bool
    """``False`` for plain TCP: multipath was not requested, or the system, the peer or a middlebox does not support it."""
    subflows: tuple[Subflow, ...] = ()
    """The established subflows."""

    def __bool__(self) -> bool:
        return self.real


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The endpoints by which the system adds subflows to every multipath connection, regardless of its binding."""

    addresses: tuple[IPAddress, ...] = ()
    """The local addresses of the endpoints."""
    unbound: tuple[IPAddress, ...] = ()
    """Those of the addresses whose subflows are not bound to an interface, and so follow the routes."""
    follows_peer: bool = False
    """Whether the system connects to addresses that the peer announces, by any route."""
