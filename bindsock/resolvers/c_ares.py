"""How c-ares is bound so that it fails closed.

c-ares binds its sockets to ``local_dev``, and goes on without a word where that fails: a question then leaves unbound
(c-ares src/lib/ares_conn.c, ares_conn_set_sockopts). Therefore its sockets also get the local address that the system gave a
socket which was bound before. A ``local_ip`` that is not there any more is an error, and it goes with the device.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from bindsock.dial.followed_socket import FollowedSocket
from bindsock.errors import BindFailed, NoEffectiveInterface
from bindsock.model.network import family_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindsock.factory import TransportFactory
    from bindsock.model.network import IPAddress

_SERVER = re.compile(r"\[([^\]]+)\](?::\d+)?|([^:]+)(?::\d+)?|(.+)")


@dataclass(frozen=True, slots=True)
class Binding:
    """How the sockets for one name server are bound."""

    device: str
    address: str


def bindings(factory: TransportFactory, servers: Sequence[str]) -> dict[str, Binding | None]:
    """How the sockets for each name server are to be bound; ``None`` for unbound.

    Servers for which there is no interface are left out, unless there is none for any of them.

    :raises NoEffectiveInterface: no interface may be used for any of them
    :raises NoRoute: no route to one leaves by its interface
    :raises ValueError: they leave by different interfaces, and c-ares has one device only
    """
    found: dict[str, Binding | None] = {}
    refused: NoEffectiveInterface | None = None
    for name in servers:
        try:
            found[name] = _binding(factory, server_address(name))
        except NoEffectiveInterface as error:
            refused = error
    if refused is not None and not found:
        raise refused
    if len({binding.device if binding is not None else None for binding in found.values()}) > 1:
        ways = ", ".join(f"{name} by {b.device if b is not None else 'no interface'}" for name, b in found.items())
        raise ValueError(f"the name servers leave by different interfaces, make a resolver for each: {ways}")
    return found


def bind_channel(factory: TransportFactory, channel: Any) -> str | None:
    """Bind the next sockets of a :class:`pycares.Channel`.

    :return: the device, ``None`` if they are left unbound
    :raises BindsockError: they cannot be bound
    """
    try:
        found = bindings(factory, channel.servers)
    except ValueError as error:
        raise BindFailed(str(error), call="ares_set_local_dev") from error
    bound = [binding for binding in found.values() if binding is not None]
    channel.set_local_dev(bound[0].device if bound else "")
    for address in [binding.address for binding in bound] or ["0.0.0.0", "::"]:
        channel.set_local_ip(address)
    return bound[0].device if bound else None


def server_address(name: str) -> IPAddress:
    """The address of a name server that is written with or without a port."""
    match = _SERVER.fullmatch(name)
    if match is None:
        raise ValueError(f"not a name server's address: {name!r}")
    return ip_address(next(group for group in match.groups() if group))


def _binding(factory: TransportFactory, server: IPAddress) -> Binding | None:
    """How a socket for the server is to be bound, found out with one that sends nothing."""
    with FollowedSocket(family_of(server), socket.SOCK_DGRAM) as probe:
        decision = factory.bind(probe, server)
        if decision.interface is None:
            return None
        probe.connect((str(server), 53))
        return Binding(decision.interface.name, probe.getsockname()[0])
