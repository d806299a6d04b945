"""What was decided, on what basis, and what a socket depends on."""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass

from bindsock.model.network import Interface, IPAddress, Target, family_name


class Basis(enum.StrEnum):
    """On what a decision rests."""

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
    """An interface that was looked at, and why it was taken or refused."""

    interface: str
    index: int
    taken: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Which interface, and why. ``str()`` of it is what ``bindsock explain`` prints."""

    target: Target
    family: socket.AddressFamily
    interface: Interface | None
    """``None``: either nothing is to be bound (see :attr:`unbound`) or there is no interface that may be used."""
    basis: Basis
    unbound: bool = False
    """The destination must not be bound to any interface: it is local, or a split tunnel's own."""
    candidates: tuple[Candidate, ...] = ()
    """Every interface that was considered, best first."""
    tunnels: tuple[str, ...] = ()
    """The tunnels that were looked through: the one that catches unbound traffic first, then the chain of delegates."""
    gateway: IPAddress | None = None
    """The next hop of the route that was taken, ``None`` for an on-link one."""
    notes: tuple[str, ...] = ()
    """What else a person should know: a tie and how it was broken, a delegate that was not believed."""
    source: IPAddress | None = None
    """The local address that a socket has to be bound to before it connects; ``None`` if the system chooses the right one."""

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
            answer += f", beneath {', '.join(self.tunnels)}"
        width = max((len(c.interface) for c in self.candidates), default=0)
        lines = [f"{subject} {answer}"]
        lines += [f"  {'+' if c.taken else '-'} {c.interface:<{width}}  {c.reason}" for c in self.candidates]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Path:
    """What a socket depends on. Paths are compared, not names: Wi-Fi A and Wi-Fi B are both ``en0``."""

    family: socket.AddressFamily
    interface: str
    index: int
    addresses: frozenset[IPAddress]
    """The usable addresses of the family."""
    gateway: IPAddress | None
    source: IPAddress | None = None
    """The local address that the socket has to be bound to, where there is one."""


def pinned_to(decision: Decision) -> str | None:
    """The name of the one interface that was allowed, if that is what the decision rests on."""
    return decision.interface.name if decision.basis is Basis.PINNED and decision.interface is not None else None


def path_of(decision: Decision) -> Path | None:
    """The path that a decision leads to, ``None`` where nothing is bound."""
    interface = decision.interface
    return path_on(interface, decision.family, decision.gateway, decision.source) if interface is not None else None


def path_on(
    interface: Interface, family: socket.AddressFamily, gateway: IPAddress | None = None, source: IPAddress | None = None
) -> Path:
    """The path by an interface.

    :param gateway: the first hop, ``None`` if there is none or it is not known
    :param source: the local address that the socket has to be bound to, where there is one
    """
    return Path(family, interface.name, interface.index, frozenset(interface.usable_addresses(family)), gateway, source)
