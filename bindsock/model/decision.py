"""Decisions with their reasons, and paths, which are what a socket depends on."""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass

from bindsock.model.network import Interface, IPAddress, Target, family_name


class Basis(enum.StrEnum):
    """The kind of reason for a decision."""

    DEFAULT_ROUTE = "default route"
    DELEGATE = "delegate"
    SCOPED_DEFAULT = "scoped default"
    LONGEST_PREFIX = "longest prefix"
    PINNED = "pinned"
    LOCAL = "local"
    LINK_SCOPE = "link scope"
    SPLIT_TUNNEL = "split tunnel"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An interface that was considered, and why it was taken or refused."""

    interface: str
    index: int
    taken: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The interface for a target, and the reasons. ``str()`` returns the text that ``bindsock explain`` prints."""

    target: Target
    family: socket.AddressFamily
    interface: Interface | None
    """``None`` if the socket must stay unbound (see :attr:`unbound`) or if no interface may be used."""
    basis: Basis
    unbound: bool = False
    """The socket must stay unbound: the destination is on this host, or it belongs to a split tunnel."""
    candidates: tuple[Candidate, ...] = ()
    """Every interface that was considered, best first."""
    tunnels: tuple[str, ...] = ()
    """The names of the bypassed tunnels: first the one that unbound traffic would enter, then the chain of delegates."""
    gateway: IPAddress | None = None
    """The next hop of the chosen route; ``None`` if the route is on-link."""
    notes: tuple[str, ...] = ()
    """Further explanations: a tie and how it was broken, a delegate that was not believed."""
    source: IPAddress | None = None
    """The local address to bind a socket to before it connects; ``None`` if the system chooses the right one by itself."""

    def __str__(self) -> str:
        subject = family_name(self.family) if isinstance(self.target, socket.AddressFamily) else str(self.target)
        if self.unbound:
            answer = f"is not bound to an interface ({self.basis})"
        elif self.interface is None:
            answer = "has no effective interface" + ("" if self.basis is Basis.NONE else f" ({self.basis})")
        else:
            via = f" via {self.gateway}" if self.gateway is not None else ""
            via += f" from {self.source}" if self.source is not None else ""
            answer = f"leaves by {self.interface.name}{via} ({self.basis})"
        if self.tunnels:
            answer += f", bypassing {', '.join(self.tunnels)}"
        width = max((len(c.interface) for c in self.candidates), default=0)
        lines = [f"{subject} {answer}"]
        lines += [f"  {'+' if c.taken else '-'} {c.interface:<{width}}  {c.reason}" for c in self.candidates]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Path:
    """The properties of an interface that a socket depends on. Two Wi-Fi networks have different paths, though both are
    ``en0``."""

    family: socket.AddressFamily
    interface: str
    index: int
    addresses: frozenset[IPAddress]
    """The usable addresses of the family."""
    gateway: IPAddress | None
    source: IPAddress | None = None
    """The local address that the socket must be bound to, if there is one."""


def pinned_to(decision: Decision) -> str | None:
    """The name of the interface to which the decision was pinned, if it was."""
    return decision.interface.name if decision.basis is Basis.PINNED and decision.interface is not None else None


def path_of(decision: Decision) -> Path | None:
    """The path of a decision; ``None`` if the socket stays unbound or has no interface."""
    interface = decision.interface
    return path_on(interface, decision.family, decision.gateway, decision.source) if interface is not None else None


def path_on(
    interface: Interface, family: socket.AddressFamily, gateway: IPAddress | None = None, source: IPAddress | None = None
) -> Path:
    """The path by an interface.

    :param gateway: the first hop; ``None`` if there is none or it is unknown
    :param source: the local address that the socket must be bound to, if there is one
    """
    return Path(family, interface.name, interface.index, frozenset(interface.usable_addresses(family)), gateway, source)
