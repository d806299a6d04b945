"""Counts the datagrams that a device accepted and then dropped.

After the carrier is lost, ``send()`` still succeeds until the kernel notices, up to a second later
(``linux net/core/link_watch.c``). The datagrams of that time are dropped silently. A device has one drop counter for all
senders. Datagrams that wait for the link-layer address of a silent gateway are dropped without being counted. So, while a socket
sends:

* The drop counter of the device is recorded twice a second, once for all sockets on the device. When the device turns out to be
  dead, its drops since the record of two seconds ago count as lost. Each socket accounts for at most as many of them as it has
  sent in that time, and no drop is counted for two sockets.
* The socket's unsent datagrams, which it has passed to the device, are counted fifty times a second. If there were any in the
  last sample, they are lost, and so are the datagrams sent since.
* If the device works but the route is gone, IPv4 treats the destination as a neighbour and sends ARP requests
  (``linux net/ipv4/route.c``, ip_route_output_key_hash_rcu). The datagrams that wait for the answer are lost, as are those that
  wait for a silent gateway when the socket leaves it.
* If the device itself is gone, and its counter with it, the datagrams sent since the last but one sample count as lost.

The result is exact if nobody else sends by the device and the gateway answers. Otherwise it is an upper bound: a counted drop may
have been another program's, and a datagram may still be sent if the carrier returns within seconds.
"""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING, NamedTuple

from bindsock.model.statistics import UNBOUND

if TYPE_CHECKING:
    from bindsock.kernel import Kernel
    from bindsock.model.network import Interface
    from bindsock.model.statistics import Statistics
    from bindsock.netmon.loop import Clock
    from bindsock.netmon.runtime import Runtime

SAMPLE_INTERVAL = 0.02
"""Seconds between two samples of the unsent datagrams."""
RECORD_INTERVAL = 0.5
"""Seconds between two records of the device's drop counter."""
LOOKBACK = 2.0
"""Datagrams of so many seconds before the move may be lost: one second until the kernel notices, and one until bindsock acts."""

_NEVER = math.inf


class _Record(NamedTuple):
    time: float
    sent: int
    dropped: int


class Leftover(NamedTuple):
    """The recent datagrams of a socket that has left a dead device."""

    interface: Interface
    sent: int
    """How many the device has accepted."""
    dropped_before: int
    """The device's drop counter before the first of them."""
    sent_last: int
    """How many of them were sent since the last but one sample."""
    waiting: int
    """How many of them had not left yet."""


class DeviceDrops:
    """The drops of the devices that no socket has accounted for yet, shared by all sockets on one event loop."""

    __slots__ = ("_claimed", "_latest", "_leaving", "_leftovers", "_runtime", "time")

    def __init__(self, runtime: Runtime) -> None:
        self.time: Clock = runtime.time
        self._runtime = runtime
        self._claimed: dict[int, int] = {}
        self._latest: dict[int, tuple[float, int]] = {}
        self._leftovers: list[tuple[Leftover, Kernel, Statistics]] = []
        """What is to be counted in the next iteration of the loop."""
        self._leaving: set[int] = set()
        """The indices of the devices that these have left."""

    def dropped(self, kernel: Kernel, interface: Interface, not_before: float) -> int | None:
        """The drops that no socket has accounted for; ``None`` if they are unknown.

        :param not_before: the oldest acceptable time of the count, in monotonic seconds; infinity to ask the kernel now
        """
        if interface.index in self._leaving:
            self._count()  # a socket has returned to a device before what it left there was counted
        latest = self._latest.get(interface.index)
        if latest is None or latest[0] < not_before:
            count = kernel.dropped(interface)
            if count is None:
                self._latest.pop(interface.index, None)
                return None
            latest = self._latest[interface.index] = (self.time(), count)
        return latest[1] - self._claimed.get(interface.index, 0)

    def claim(self, interface: Interface, count: int) -> None:
        """Account for so many drops."""
        self._claimed[interface.index] = self._claimed.get(interface.index, 0) + count

    def lost(self, leftover: Leftover, kernel: Kernel, not_before: float) -> int:
        """How many of these datagrams the dead device has not sent. Call it once for each leftover.

        :param not_before: as for :meth:`dropped`
        """
        count = self.dropped(kernel, leftover.interface, not_before)
        if count is None:
            # The device is gone, and so is its counter.
            dropped = min(leftover.sent, leftover.sent_last)
        else:
            dropped = max(0, min(leftover.sent, count - leftover.dropped_before))
            self.claim(leftover.interface, dropped)
        return min(leftover.sent, dropped + leftover.waiting)

    def count_later(self, leftover: Leftover, kernel: Kernel, statistics: Statistics) -> None:
        """Count in the next iteration of the loop what was lost, since the sockets that move go first.

        The kernel is asked once for all sockets that have left a device.
        """
        self._leftovers.append((leftover, kernel, statistics))
        self._leaving.add(leftover.interface.index)
        if len(self._leftovers) == 1:
            self._runtime.call_soon(self._count)

    def _count(self) -> None:
        leftovers, self._leftovers = self._leftovers, []
        self._leaving.clear()
        asked: set[int] = set()
        for leftover, kernel, statistics in leftovers:
            index = leftover.interface.index
            statistics.lost_on_device += self.lost(leftover, kernel, 0.0 if index in asked else math.inf)
            asked.add(index)


class DropCounter:
    """Counts what one socket has sent by its device lately, and how much of it was lost.

    :param kernel: the kernel to ask
    :param devices: the drops of the devices, shared by all sockets
    :param tally: the number of datagrams sent, by the name of the interface; updated here
    """

    __slots__ = (
        "_devices",
        "_interface",
        "_kernel",
        "_name",
        "_record_due",
        "_records",
        "_sent",
        "_sent_before",
        "_sent_then",
        "_tally",
        "_unsent",
        "_unsent_before",
        "due",
    )

    def __init__(self, kernel: Kernel, devices: DeviceDrops, tally: dict[str, int]) -> None:
        self._kernel = kernel
        self._devices = devices
        self._tally = tally
        self._name = UNBOUND
        tally.setdefault(UNBOUND, 0)
        self._interface: Interface | None = None
        self._records: list[_Record] = []
        self._sent = 0
        self._record_due = _NEVER
        self._unsent = 0
        self._unsent_before = 0
        self._sent_then = 0
        self._sent_before = 0
        self.due: float = 0.0
        """When the next :meth:`sample` is due, in monotonic seconds. It must precede the next send."""

    def start(self, interface: Interface | None) -> None:
        """Count for that interface from now on; ``None`` if the socket is unbound."""
        self._interface = interface
        self._name = UNBOUND if interface is None else interface.name
        self._tally.setdefault(self._name, 0)
        self._reset()
        if interface is not None:
            # The first record is made with the first send, so that an idle socket costs nothing.
            self._record_due = 0.0

    def _stop(self) -> None:
        """Stop counting: the path is dead, and its losses have been counted."""
        self._interface = None
        self._reset()

    def _reset(self) -> None:
        self._records.clear()
        self._sent = self._unsent = self._sent_before = self._sent_then = self._unsent_before = 0
        self.due, self._record_due = 0.0, _NEVER

    def sent(self) -> None:
        """Count a datagram that the system has accepted."""
        self._sent += 1
        self._tally[self._name] += 1

    def sample(self, now: float, sock: socket.socket) -> None:
        """Count the unsent datagrams of the socket, and record the drop counter of the device if that is due."""
        self.due = now + SAMPLE_INTERVAL
        if self._interface is None:
            return
        self._sent_before, self._unsent_before = self._sent_then, self._unsent
        self._unsent, self._sent_then = self._kernel.unsent(sock) if self._sent else 0, self._sent
        if now >= self._record_due:
            self._record(now)

    def lost_on_dead_device(self, sock: socket.socket) -> int:
        """How many datagrams of the socket a dead device accepted and did not send. They are counted only once."""
        leftover = self._leave(sock)
        return self._devices.lost(leftover, self._kernel, math.inf) if leftover is not None else 0

    def count_lost_later(self, sock: socket.socket, statistics: Statistics) -> None:
        """Add to the statistics, a moment later, what :meth:`lost_on_dead_device` returns."""
        leftover = self._leave(sock)
        if leftover is not None:
            self._devices.count_later(leftover, self._kernel, statistics)

    def _leave(self, sock: socket.socket) -> Leftover | None:
        """Stop counting on a dead device.

        :return: what may be lost; ``None`` if nothing was sent
        """
        if self._interface is None or not self._records:
            return None
        self._forget(self._devices.time())
        before, leftover = self._records[0], None
        if self._sent != before.sent:
            sent = self._sent - before.sent
            leftover = Leftover(self._interface, sent, before.dropped, self._sent - self._sent_before, self._waiting(sock))
        self._stop()
        return leftover

    def _waiting(self, sock: socket.socket) -> int:
        """How many datagrams have not left the socket, at most.

        If there were any in the last sample, these and all later ones, because the kernel may have discarded them meanwhile.
        """
        since = self._sent - self._sent_then
        return self._unsent + since if self._unsent or not since else min(self._kernel.unsent(sock), since)

    def stuck(self, sock: socket.socket) -> int:
        """How many datagrams a working device could not send, at most, if it has no route or its first hop does not answer.

        The kernel may have discarded them before the last sample, since a program can send before it is told.
        """
        before = self._unsent_before + self._sent - self._sent_before if self._unsent_before else 0
        return min(self._sent, max(self._waiting(sock), before))

    def lost_while_stuck(self, sock: socket.socket) -> int:
        """As :meth:`stuck`; they are counted only once."""
        if self._interface is None:
            return 0
        count = self.stuck(sock)
        self._stop()
        return count

    def _record(self, now: float) -> None:
        assert self._interface is not None
        dropped = self._devices.dropped(self._kernel, self._interface, now - RECORD_INTERVAL / 2)
        if dropped is None:
            return
        self.due, self._record_due = now + SAMPLE_INTERVAL, now + RECORD_INTERVAL
        self._records.append(_Record(now, self._sent, dropped))
        self._forget(now)

    def _forget(self, now: float) -> None:
        while len(self._records) > 1 and self._records[1].time <= now - LOOKBACK:
            del self._records[0]
