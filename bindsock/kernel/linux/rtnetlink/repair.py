"""Repairs: a default route in a table of its own, and two policy rules that lead sockets bound to the interface to that table.

All three carry a routing protocol number of our own, by which they are found again. There are two such numbers: one for repairs
that end with the process that made them, one for repairs that an administrator keeps. A process that makes repairs holds an
abstract Unix socket, whose name belongs to the network namespace and disappears with the process, even in a crash. Repairs
without such a socket are left from a crash.

To remove an entry, its message from the dump is sent back as the order.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bindsock.kernel.linux import netlink
from bindsock.kernel.linux.netlink import Channel
from bindsock.kernel.linux.rtnetlink import routes
from bindsock.kernel.linux.rtnetlink.policy import (
    FRA_OIFNAME,
    FRA_PRIORITY,
    FRA_PROTOCOL,
    FRA_SUPPRESS_PREFIXLEN,
    FRA_TABLE,
    RULE,
    TO_TABLE,
    dump_rules,
    parse_policy_rule,
)
from bindsock.model.network import FAMILIES, MAIN_TABLE, IPAddress, family_of
from bindsock.model.policy import REPAIR_PREFERENCES, Gateway, Repair, is_repair_table, repair_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HELD = 181
KEPT = 182
"""Routing protocol numbers. They are neither in ``include/uapi/linux/rtnetlink.h`` nor in iproute2's ``rt_protos``."""

_RTM_NEWRULE, _RTM_DELRULE = 32, 33
_CREATE = 0x400 | 0x200
"""NLM_F_CREATE and NLM_F_EXCL."""
_REPLACE = 0x400 | 0x100
"""NLM_F_CREATE and NLM_F_REPLACE."""
_SCOPE_UNIVERSE = 0
_GONE = frozenset({errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL})
_HOLDER = "bindsock-repair-"
_UNIX_SOCKETS = "/proc/thread-self/net/unix"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A rule or a route that a repair consists of."""

    kind: Literal["route", "rule"]
    family: socket.AddressFamily
    protocol: int
    table: int
    interface: str
    """The name of the interface, for rules only."""
    index: int
    """The index of the interface, for routes only."""
    gateway: IPAddress | None
    payload: bytes


class Repairs:
    """The :class:`bindsock.kernel.Repairs` of Linux. It belongs to the network namespace in which it was made.

    :param kept: whether its repairs stay when the process ends
    """

    def __init__(self, *, kept: bool = False) -> None:
        self._protocol = KEPT if kept else HELD
        self._channel = Channel()
        self._mark: socket.socket | None = None
        if not kept:
            self._mark = _hold()
            self._finalizer = weakref.finalize(self, self._mark.close)

    def existing(self) -> list[Repair]:
        """The complete repairs."""
        entries = self._entries()
        found = []
        for route in entries:
            if route.kind != "route" or route.gateway is None:
                continue
            # The present name of the index: a rule names the interface, and another device may have that name now.
            name = _name_of(route.index)
            if name is None:
                continue
            rules = {e.table for e in entries if e.kind == "rule" and e.family == route.family and e.interface == name}
            if rules == {MAIN_TABLE, route.table}:
                found.append(Repair(route.family, name, route.index, Gateway(route.gateway, "the repair")))
        return found

    def make(self, repair: Repair) -> None:
        """Make a repair. Existing entries are kept, except a route by another gateway, which a crash may have left."""
        orders = [(routes.RTM_NEWROUTE, _route(repair, self._protocol))]
        first, second = REPAIR_PREFERENCES
        orders.append((_RTM_NEWRULE, _rule(repair, first, MAIN_TABLE, self._protocol)))
        orders.append((_RTM_NEWRULE, _rule(repair, second, repair.table, self._protocol)))
        for kind, body in orders:
            try:
                self._channel.tell(kind, body, _CREATE)
            except FileExistsError:
                if kind == routes.RTM_NEWROUTE and self._by_another_gateway(repair):
                    self._channel.tell(kind, body, _REPLACE)

    def remove(self, repair: Repair) -> None:
        """Remove a repair, whoever made it."""
        self._delete(
            e
            for e in self._entries()
            if e.family == repair.family and (e.table == repair.table if e.kind == "route" else e.interface == repair.interface)
        )

    def remove_all(
        self, *, orphans: bool = False, interface: str | None = None, families: Sequence[socket.AddressFamily] = FAMILIES
    ) -> int:
        """Remove all repairs, complete or not."""
        if orphans and self._others():
            return 0
        entries = self._entries()
        return self._delete(
            e
            for e in entries
            if (not orphans or e.protocol == HELD)
            and e.family in families
            and (interface is None or _is_of(e, interface, entries))
        )

    def close(self) -> None:
        """Close the descriptors."""
        if self._mark is not None:
            self._finalizer()
        self._channel.close()

    def _by_another_gateway(self, repair: Repair) -> bool:
        """Whether the table of the repair has a route by another gateway."""
        return any(
            e.kind == "route" and e.family == repair.family and e.table == repair.table and e.gateway != repair.gateway.address
            for e in self._entries()
        )

    def _delete(self, entries: Iterable[_Entry]) -> int:
        count = 0
        for entry in sorted(entries, key=lambda e: e.kind == "route"):
            try:
                self._channel.tell(routes.RTM_DELROUTE if entry.kind == "route" else _RTM_DELRULE, entry.payload)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
            else:
                count += 1
        return count

    def _entries(self) -> list[_Entry]:
        found: list[_Entry] = []
        for family in FAMILIES:
            for payload in dump_rules(self._channel, family):
                rule = parse_policy_rule(payload)
                if rule is not None and rule.family == family and rule.protocol in (HELD, KEPT):
                    found.append(_Entry("rule", family, rule.protocol, rule.table, rule.outgoing, 0, None, payload))
            for payload in self._channel.dump(routes.RTM_GETROUTE, routes.dump_request(family)):
                protocol = netlink.fixed(routes.RTMSG, payload)[5]
                parsed = routes.parse_route(payload) if protocol in (HELD, KEPT) else None
                if parsed is None or not parsed.routes or not is_repair_table(parsed.table):
                    continue
                (route, *_) = parsed.routes
                if route.family == family:
                    index, gateway = route.interface or 0, route.gateway
                    found.append(_Entry("route", family, protocol, parsed.table, "", index, gateway, payload))
        return found

    def _others(self) -> bool:
        """Whether anything but this object makes repairs in this network namespace."""
        mine = self._mark.getsockname()[1:].decode() if self._mark is not None else ""
        try:
            with open(_UNIX_SOCKETS, encoding="utf-8", errors="replace") as lines:
                names = {line.rstrip("\n").rpartition("@")[2] for line in lines if f"@{_HOLDER}" in line}
        except OSError:
            return True  # unknown: never remove the repairs of a running process
        return bool(names - {mine})


def _is_of(entry: _Entry, interface: str, entries: Sequence[_Entry]) -> bool:
    """Whether the entry belongs to the interface, even if a rule still has a name from before the interface was renamed."""
    if entry.kind == "route":
        return _name_of(entry.index) == interface
    if entry.interface == interface:
        return True
    try:
        table = repair_table(socket.if_nametoindex(interface))
    except OSError:
        return False
    if entry.table != MAIN_TABLE:
        return entry.table == table
    rules = [e for e in entries if e.kind == "rule" and e.family == entry.family and e.interface == entry.interface]
    return {e.table for e in rules} == {MAIN_TABLE, table}


def _name_of(index: int) -> str | None:
    """The present name of an interface; ``None`` if it is gone."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None


def _hold() -> socket.socket:
    """A socket with a unique name, which others see in the network namespace until it is closed."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.bind(f"\0{_HOLDER}{os.getpid()}-{os.urandom(6).hex()}")
    except OSError:
        sock.close()
        raise
    return sock


def _route(repair: Repair, protocol: int) -> bytes:
    gateway = repair.gateway.address
    body = routes.RTMSG.pack(repair.family, 0, 0, 0, 0, protocol, _SCOPE_UNIVERSE, routes.RTN_UNICAST, 0)
    body += netlink.attribute_u32(routes.RTA_TABLE, repair.table) + netlink.attribute_u32(routes.RTA_OIF, repair.index)
    if family_of(gateway) == repair.family:
        return body + netlink.attribute(routes.RTA_GATEWAY, gateway.packed)
    return body + netlink.attribute(routes.RTA_VIA, struct.pack("=H", family_of(gateway)) + gateway.packed)


def _rule(repair: Repair, preference: int, table: int, protocol: int) -> bytes:
    body = RULE.pack(repair.family, 0, 0, 0, 0, TO_TABLE, 0)
    body += netlink.attribute_u32(FRA_PRIORITY, preference) + netlink.attribute_u32(FRA_TABLE, table)
    body += netlink.attribute(FRA_OIFNAME, os.fsencode(repair.interface) + b"\0")
    body += netlink.attribute(FRA_PROTOCOL, bytes([protocol]))
    return body + netlink.attribute_u32(FRA_SUPPRESS_PREFIXLEN, 0) if table == MAIN_TABLE else body
