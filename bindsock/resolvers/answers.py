"""The protocol of lookups by one interface, their answers and errors."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from bindsock.model.network import IPAddress
    from bindsock.netmon.watcher import Watcher


@dataclass(frozen=True, slots=True)
class Answer:
    """The addresses of a name in one family."""

    addresses: tuple[IPAddress, ...]
    ttl: float = 0.0
    """How long the answer may be cached, in seconds; 0 if the resolver that answered has a better cache."""


class NoResolver(OSError):
    """This way to look up names does not exist on this system or for this interface. Another one may."""


class Lookup(Protocol):
    """A way to look up a name by an interface."""

    async def __call__(self, name: str, family: socket.AddressFamily, index: int, watcher: Watcher) -> Answer:
        """Look up a name.

        :param name: a host name, never a numeric address
        :param family: ``AF_INET`` or ``AF_INET6``
        :param index: the index of the interface by which the query leaves
        :return: an answer without addresses if the name has none in the family
        :raises NoResolver: this way does not exist here
        :raises socket.gaierror: the name does not exist, or no server answered
        """


def no_such_name(name: str) -> socket.gaierror:
    """The error for a name that does not exist or has no address."""
    return socket.gaierror(socket.EAI_NONAME, f"{name}: name or service not known")


def try_again(name: str, why: str) -> socket.gaierror:
    """The error for a lookup that failed but may succeed later."""
    return socket.gaierror(socket.EAI_AGAIN, f"{name}: temporary failure in name resolution, {why}")
