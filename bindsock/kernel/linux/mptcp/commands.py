"""Commands to the kernel's multipath path managers, over generic netlink.

The family ``mptcp_pm`` and its numbers are those of ``include/uapi/linux/mptcp_pm.h``.
"""

from __future__ import annotations

import errno
import functools
import socket
import struct
import sys
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from bindsock.kernel.linux import netlink
from bindsock.kernel.linux.netlink import Channel
from bindsock.model.network import unmapped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bindsock.model.network import IPAddress
    from bindsock.model.subflows import Subflow

_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID = 1
_CTRL_ATTR_FAMILY_NAME = 2
HEADER = struct.Struct("=BBH")
_VERSION = 1
_U16 = struct.Struct("=H")

_CMD_ADD_ADDR = 1
_CMD_DEL_ADDR = 2
_CMD_GET_ADDR = 3
CMD_GET_LIMITS = 6
_CMD_SET_FLAGS = 7
CMD_REMOVE = 9
CMD_SUBFLOW_CREATE = 10
CMD_SUBFLOW_DESTROY = 11
ATTR_ADDR = 1
ATTR_RCV_ADD_ADDRS = 2
ATTR_TOKEN = 4
ATTR_LOC_ID = 5
ATTR_ADDR_REMOTE = 6
_ADDR_FAMILY = 1
ADDR_ID = 2
_ADDR_ADDR4 = 3
_ADDR_ADDR6 = 4
_ADDR_PORT = 5
ADDR_FLAGS = 6
ADDR_IF_IDX = 7
FLAG_SUBFLOW = 1 << 1
FLAG_BACKUP = 1 << 2
FLAG_IMPLICIT = 1 << 4
"""Marks an endpoint that the kernel made itself for an address in use. It causes no subflows."""


class Endpoint(NamedTuple):
    """A local address that all multipath connections get subflows from."""

    address: IPAddress
    identifier: int
    flags: int
    bound: int
    """The index of the interface that its subflows are bound to; 0 if they are bound to none."""
    attributes: bytes
    """The endpoint's netlink attributes, with which it can be added again."""

    def causes_subflows_from(self, address: IPAddress) -> bool:
        """Whether the kernel makes subflows from this address because of it."""
        return self.address == address and bool(self.flags & FLAG_SUBFLOW)


class Commands:
    """Gives commands over one socket, which the first command opens. Use it in one thread at a time."""

    def __init__(self) -> None:
        self._channel = Channel(functools.partial(netlink.open_query_socket, netlink.NETLINK_GENERIC))
        self._family: int | None = None

    def close(self) -> None:
        """Close the socket; the next command opens another one."""
        self._channel.close()

    def endpoints(self) -> list[Endpoint]:
        """The in-kernel path manager's endpoints. Needs no privilege."""
        found = []
        for payload in self._channel.dump(self._family_number(), HEADER.pack(_CMD_GET_ADDR, _VERSION, 0)):
            raw = netlink.attributes(payload, HEADER.size).get(ATTR_ADDR, b"")
            entry = netlink.attributes(raw)
            packed = entry.get(_ADDR_ADDR4) or entry.get(_ADDR_ADDR6)
            if packed is None or len(packed) not in (4, 16):
                continue
            address = IPv4Address(packed) if len(packed) == 4 else unmapped(IPv6Address(packed))
            flags, bound = (netlink.u32(entry.get(kind, bytes(4))) for kind in (ADDR_FLAGS, ADDR_IF_IDX))
            found.append(Endpoint(address, entry.get(ADDR_ID, b"\0")[0], flags, bound, raw))
        return found

    def add_endpoint(self, address: IPAddress, index: int) -> None:
        """Let all connections get a subflow from an address, bound to an interface.

        :raises FileExistsError: there is such an endpoint
        """
        self.tell(_CMD_ADD_ADDR, address_attribute(ATTR_ADDR, address, index=index, flags=FLAG_SUBFLOW))

    def restore_endpoint(self, attributes: Mapping[int, bytes]) -> None:
        """Add an endpoint that has been removed.

        :param attributes: those of :attr:`Endpoint.attributes`
        """
        self.tell(_CMD_ADD_ADDR, netlink.nested(ATTR_ADDR, *(netlink.attribute(*pair) for pair in attributes.items())))

    def remove_endpoint(self, address: IPAddress, identifier: int) -> None:
        """Remove an endpoint, and with it all subflows from its address; takes some 10 ms.

        :param identifier: 0 for the first subflows of all connections with that address, which have no endpoint
        """
        self.tell(_CMD_DEL_ADDR, address_attribute(ATTR_ADDR, address, identifier=identifier), harmless=(errno.EINVAL,))

    def set_backup(self, token: int, subflow: Subflow, *, backup: bool) -> None:
        """Make one subflow of a connection that the userspace path manager controls a backup or not, and tell the peer.

        The kernel tells it even if nothing has changed.
        """
        self.tell(
            _CMD_SET_FLAGS,
            netlink.attribute_u32(ATTR_TOKEN, token),
            address_attribute(ATTR_ADDR, subflow.local, port=subflow.local_port, flags=FLAG_BACKUP if backup else 0),
            address_attribute(ATTR_ADDR_REMOTE, subflow.remote, port=subflow.remote_port),
        )

    def set_all_backup(self, address: IPAddress, *, backup: bool) -> None:
        """Make the subflows from the address of an endpoint backups or not: those of all programs, whose path manager is the
        in-kernel one. The kernel tells the peers if that is a change."""
        for endpoint in self.endpoints():
            if endpoint.address == address:
                self._set_flags(endpoint, endpoint.flags | FLAG_BACKUP if backup else endpoint.flags & ~FLAG_BACKUP)

    def prompt_all(self, address: IPAddress) -> None:
        """Send packets by the subflows from an address, those of all programs, whose path manager is the in-kernel one.

        It sends one for each change of the flags of an endpoint, so one flag is changed and changed back.
        """
        for endpoint in self.endpoints():
            if endpoint.address == address:
                for flags in (endpoint.flags ^ FLAG_BACKUP, endpoint.flags):
                    self._set_flags(endpoint, flags)

    def _set_flags(self, endpoint: Endpoint, flags: int) -> None:
        attributes = netlink.attributes(endpoint.attributes)
        attributes[ADDR_FLAGS] = flags.to_bytes(4, sys.byteorder)
        self.tell(_CMD_SET_FLAGS, netlink.nested(ATTR_ADDR, *(netlink.attribute(*pair) for pair in attributes.items())))

    def ask(self, command: int) -> bytes:
        """Ask a question that has no arguments."""
        return self._channel.ask(self._family_number(), HEADER.pack(command, _VERSION, 0)).payload

    def tell(self, command: int, *body: bytes, harmless: tuple[int, ...] = ()) -> None:
        """Give an order.

        :param harmless: errnos that mean that there was nothing to do
        :raises OSError: the kernel refuses
        """
        try:
            self._channel.tell(self._family_number(), HEADER.pack(command, _VERSION, 0) + b"".join(body))
        except OSError as error:
            if error.errno not in harmless:
                raise

    def _family_number(self) -> int:
        if self._family is None:
            body = HEADER.pack(_CTRL_CMD_GETFAMILY, _VERSION, 0)
            answer = self._channel.ask(_GENL_ID_CTRL, body + netlink.attribute(_CTRL_ATTR_FAMILY_NAME, b"mptcp_pm\0"))
            found = netlink.attributes(answer.payload, HEADER.size)
            (self._family,) = netlink.fixed(_U16, found.get(_CTRL_ATTR_FAMILY_ID, b""))
        return self._family


def address_attribute(
    kind: int, address: IPAddress, *, port: int = 0, identifier: int | None = None, index: int = 0, flags: int = 0
) -> bytes:
    """The netlink attribute for an address of an endpoint or a subflow."""
    family, option = (socket.AF_INET, _ADDR_ADDR4) if address.version == 4 else (socket.AF_INET6, _ADDR_ADDR6)
    parts = [netlink.attribute(_ADDR_FAMILY, _U16.pack(family))]
    if identifier is not None:
        parts.append(netlink.attribute(ADDR_ID, bytes([identifier])))
    parts.append(netlink.attribute(option, address.packed))
    if port:
        parts.append(netlink.attribute(_ADDR_PORT, _U16.pack(port)))
    if flags:
        parts.append(netlink.attribute_u32(ADDR_FLAGS, flags))
    if index:
        parts.append(netlink.attribute_u32(ADDR_IF_IDX, index))
    return netlink.nested(kind, *parts)
