"""Binding c-ares to an interface so that it fails closed.

c-ares binds its sockets to ``local_dev``, but ignores a failure: the query then leaves unbound (c-ares src/lib/ares_conn.c,
ares_conn_set_sockopts). So its sockets also get the local address that the system chose for another bound socket. If the device
is gone, so is its address, and binding to a ``local_ip`` that does not exist is an error.
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
    """The device and address for the sockets to one name server."""

    device: str
    address: str


def bindings(factory: TransportFactory, servers: Sequence[str]) -> dict[str, Binding | None]:
    """How to bind the sockets to each name server; ``None`` for unbound ones.

    Servers without an interface are left out, unless no server has one.

    :raises NoEffectiveInterface: no interface may be used for any server
    :raises NoRoute: there is no route to a server by its interface
    :raises ValueError: the servers need different interfaces, but c-ares can only use one device
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
        raise ValueError(f"the name servers need different interfaces; make a resolver for each server: {ways}")
    return found


def bind_channel(factory: TransportFactory, channel: Any) -> str | None:
    """Bind the next sockets of a :class:`pycares.Channel`.

    :return: the device; ``None`` if they stay unbound
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
    """The address of a name server, given with or without a port."""
    match = _SERVER.fullmatch(name)
    if match is None:
        raise ValueError(f"not a name server's address: {name!r}")
    return ip_address(next(group for group in match.groups() if group))


def _binding(factory: TransportFactory, server: IPAddress) -> Binding | None:
    """How to bind a socket to the server, determined by a test socket that sends nothing."""
    with FollowedSocket(family_of(server), socket.SOCK_DGRAM) as probe:
        decision = factory.bind(probe, server)
        if decision.interface is None:
            return None
        probe.connect((str(server), 53))
        return Binding(decision.interface.name, probe.getsockname()[0])
