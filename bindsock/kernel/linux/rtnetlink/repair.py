"""Repairs: a default route in a table of its own and two policy rules that lead sockets there which are bound to the interface.

All three carry a routing protocol number of our own, by which they are found again. There are two: one for what ends with the
process that made it, one for what an administrator keeps. A process that makes repairs holds an abstract Unix socket, whose name
belongs to the network namespace and goes with the process, however that ends: repairs that nobody holds are left from a crash.

What is removed is removed by the kernel's own description of it: the entry of the dump is sent back as the order.
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
from bindsock.model.policy import REPAIR_PREFERENCES, Gateway, Repair, is_repair_table

if TYPE_CHECKING:
    from collections.abc import Iterable

HELD = 181
KEPT = 182
"""Routing protocol numbers; neither is in ``include/uapi/linux/rtnetlink.h`` nor in iproute2's ``rt_protos``."""

_RTM_NEWRULE, _RTM_DELRULE = 32, 33
_CREATE = 0x400 | 0x200
"""NLM_F_CREATE and NLM_F_EXCL."""
_SCOPE_UNIVERSE = 0
_GONE = frozenset({errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL})
_HOLDER = "bindsock-repair-"
_UNIX_SOCKETS = "/proc/thread-self/net/unix"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A rule or a route of ours."""

    kind: Literal["route", "rule"]
    family: socket.AddressFamily
    protocol: int
    table: int
    interface: str
    """Of a rule."""
    index: int
    """Of a route."""
    gateway: IPAddress | None
    payload: bytes


class Repairs:
    """The :class:`bindsock.kernel.Repairs` of Linux, of the network namespace in which it was made.

    :param kept: what is made stays when the process ends
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
            # By the index's name now: a rule is by name, and another device may have that.
            try:
                name = socket.if_indextoname(route.index)
            except OSError:
                continue
            rules = {e.table for e in entries if e.kind == "rule" and e.family == route.family and e.interface == name}
            if rules == {MAIN_TABLE, route.table}:
                found.append(Repair(route.family, name, route.index, Gateway(route.gateway, "the repair")))
        return found

    def make(self, repair: Repair) -> None:
        """Make a repair. What is there already stays."""
        orders = [(routes.RTM_NEWROUTE, _route(repair, self._protocol))]
        first, second = REPAIR_PREFERENCES
        orders.append((_RTM_NEWRULE, _rule(repair, first, MAIN_TABLE, self._protocol)))
        orders.append((_RTM_NEWRULE, _rule(repair, second, repair.table, self._protocol)))
        for kind, body in orders:
            try:
                self._channel.tell(kind, body, _CREATE)
            except FileExistsError:
                continue

    def remove(self, repair: Repair) -> None:
        """Remove a repair, whoever made it."""
        self._delete(
            e
            for e in self._entries()
            if e.family == repair.family and (e.table == repair.table if e.kind == "route" else e.interface == repair.interface)
        )

    def remove_all(self, *, orphans: bool = False) -> int:
        """Remove what there is of repairs."""
        if orphans and self._others():
            return 0
        return self._delete(e for e in self._entries() if not orphans or e.protocol == HELD)

    def close(self) -> None:
        """Close the descriptors."""
        if self._mark is not None:
            self._finalizer()
        self._channel.close()

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
        """Whether a process lives in this network namespace that makes repairs, other than this one by this object."""
        mine = self._mark.getsockname()[1:].decode() if self._mark is not None else ""
        try:
            with open(_UNIX_SOCKETS, encoding="utf-8", errors="replace") as lines:
                names = {line.rstrip("\n").rpartition("@")[2] for line in lines if f"@{_HOLDER}" in line}
        except OSError:
            return True  # unknown: what lives must not be taken for dead
        return bool(names - {mine})


def _hold() -> socket.socket:
    """A socket with a name that nobody else has, seen in the network namespace for as long as this process has it."""
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
