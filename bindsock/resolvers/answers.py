"""What a lookup by one interface is asked and answers, whoever does it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from bindsock.model.network import IPAddress
    from bindsock.netmon.watcher import Watcher


@dataclass(frozen=True, slots=True)
class Answer:
    """The addresses of a name, of one family."""

    addresses: tuple[IPAddress, ...]
    ttl: float = 0.0
    """Seconds for which it may be kept; 0 where whoever was asked keeps it better than we could."""


class NoResolver(OSError):
    """This way to look names up does not exist here, or not for this interface: another may."""


class Lookup(Protocol):
    """One way to look a name up by an interface."""

    async def __call__(self, name: str, family: socket.AddressFamily, index: int, watcher: Watcher) -> Answer:
        """Look a name up.

        :param name: a host name, never a numeric address
        :param family: ``AF_INET`` or ``AF_INET6``
        :param index: of the interface by which the question leaves
        :return: without addresses if the name has none of the family
        :raises NoResolver: it cannot be asked here
        :raises socket.gaierror: the name does not exist, or nobody answered
        """


def no_such_name(name: str) -> socket.gaierror:
    """The name does not exist, or has no address."""
    return socket.gaierror(socket.EAI_NONAME, f"{name}: name or service not known")


def try_again(name: str, why: str) -> socket.gaierror:
    """Nobody could tell. It may be otherwise later."""
    return socket.gaierror(socket.EAI_AGAIN, f"{name}: temporary failure in name resolution, {why}")
