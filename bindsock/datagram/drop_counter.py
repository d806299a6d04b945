"""Counts the datagrams that a device accepted and then dropped.

When the carrier goes, ``send()`` still succeeds until the kernel has noticed, up to a second later
(``linux net/core/link_watch.c``), and what it took meanwhile is dropped without a word to anybody. A device only counts what it
drops, for all who send by it. What waits for the link-layer address of a gateway that does not answer is thrown away uncounted.
So, while a socket sends:

* The device's counter is noted twice a second, once for all sockets on the device. When the device turns out to be dead, what it
  has dropped since the note of two seconds ago is what the carrier cost; a socket accounts for as much of that as it has itself
  sent in that time, and no two sockets account for the same drop.
* What the socket has handed over and the device has not sent is looked at fifty times a second. If there was anything the last
  time, it is lost, and what was sent since.

* When the device works and the route is gone, IPv4 takes the destination for a neighbour and asks the link for it
  (``linux net/ipv4/route.c``, ip_route_output_key_hash_rcu). What waits for the answer is lost.
* When the device itself is gone, and its counter with it, what was sent since the look before the last one is taken for lost.

That is exact where nobody else sends by the device and the gateway answers, and otherwise an upper bound: what is counted may
have been another's, or may leave all the same if the carrier comes back within seconds.
"""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING, NamedTuple

from bindsock.model.statistics import UNBOUND

if TYPE_CHECKING:
    from bindsock.kernel import Kernel
    from bindsock.model.network import Interface
    from bindsock.netmon.loop import Clock
    from bindsock.netmon.runtime import Runtime

LOOK = 0.02
"""Seconds between two looks at what has not been sent yet."""
INTERVAL = 0.5
"""Seconds between two notes of the device's counter."""
LOOKBACK = 2.0
"""Seconds before the end that may have been lost: the kernel's second, and one for what it takes to act."""


_NEVER = math.inf


class _Note(NamedTuple):
    time: float
    sent: int
    dropped: int


class DeviceDrops:
    """What the devices have dropped and nobody has accounted for, shared by all sockets on one event loop."""

    __slots__ = ("_claimed", "_latest", "time")

    def __init__(self, runtime: Runtime) -> None:
        self.time: Clock = runtime.time
        self._claimed: dict[int, int] = {}
        self._latest: dict[int, tuple[float, int]] = {}

    def dropped(self, kernel: Kernel, interface: Interface, not_before: float) -> int | None:
        """The count, as it was no earlier than a time (infinity: asks at all events); ``None`` where it is unknown."""
        latest = self._latest.get(interface.index)
        if latest is None or latest[0] < not_before:
            count = kernel.dropped(interface)
            if count is None:
                return None
            latest = self._latest[interface.index] = (self.time(), count)
        return latest[1] - self._claimed.get(interface.index, 0)

    def claim(self, interface: Interface, count: int) -> None:
        """Account for drops."""
        self._claimed[interface.index] = self._claimed.get(interface.index, 0) + count


class DropCounter:
    """What one socket has lately sent by its device.

    :param kernel: what to ask
    :param devices: what all sockets share
    :param tally: how many datagrams were sent, by the name of the interface
    """

    __slots__ = (
        "_devices",
        "_interface",
        "_kernel",
        "_name",
        "_note_due",
        "_notes",
        "_sent",
        "_sent_before",
        "_sent_then",
        "_tally",
        "_unsent",
        "due",
    )

    def __init__(self, kernel: Kernel, devices: DeviceDrops, tally: dict[str, int]) -> None:
        self._kernel = kernel
        self._devices = devices
        self._tally = tally
        self._name = UNBOUND
        tally.setdefault(UNBOUND, 0)
        self._interface: Interface | None = None
        self._notes: list[_Note] = []
        self._sent = 0
        self._note_due = _NEVER
        self._unsent = 0
        self._sent_then = 0
        self.due: float = 0.0
        """When :meth:`look` is due, before the next datagram is sent."""

    def start(self, interface: Interface | None) -> None:
        """From now on the socket sends by that interface, or is bound to none."""
        self._interface = interface
        self._name = UNBOUND if interface is None else interface.name
        self._tally.setdefault(self._name, 0)
        self._reset()
        if interface is not None:
            # The first note is made when something is sent: an idle socket asks for nothing.
            self._note_due = 0.0

    def _stop(self) -> None:
        """The path is dead, and what that cost is counted."""
        self._interface = None
        self._reset()

    def _reset(self) -> None:
        self._notes.clear()
        self._sent = self._unsent = self._sent_before = self._sent_then = 0
        self.due, self._note_due = 0.0, _NEVER

    def sent(self) -> None:
        """The system has taken a datagram."""
        self._sent += 1
        self._tally[self._name] += 1

    def look(self, now: float, sock: socket.socket) -> None:
        """Write down how things stand."""
        self.due = now + LOOK
        if self._interface is None:
            return
        self._sent_before = self._sent_then
        self._unsent, self._sent_then = self._kernel.unsent(sock), self._sent
        if now >= self._note_due:
            self._note(now)

    def lost(self, sock: socket.socket) -> int:
        """The device is dead: how many of the socket's datagrams it had taken and not sent. They are not counted again."""
        interface = self._interface
        if interface is None or not self._notes:
            return 0
        self._forget(self._devices.time())
        before = self._notes[0]
        sent = self._sent - before.sent
        count = self._devices.dropped(self._kernel, interface, math.inf) if sent else before.dropped
        if count is None:
            # The device is gone, and its counter with it.
            dropped = min(sent, self._sent - self._sent_before)
        else:
            dropped = max(0, min(sent, count - before.dropped))
            self._devices.claim(interface, dropped)
        waiting = self._unsent + self._sent - self._sent_then if self._unsent else self._kernel.unsent(sock)
        self._stop()
        return min(sent, dropped + waiting)

    def stranded(self, sock: socket.socket) -> int:
        """The device works and the route is gone: how many of the socket's datagrams wait for an answer that never comes.

        They are not counted again.
        """
        if self._interface is None:
            return 0
        count = min(self._kernel.unsent(sock), self._unsent + self._sent - self._sent_then)
        self._stop()
        return count

    def _note(self, now: float) -> None:
        assert self._interface is not None
        dropped = self._devices.dropped(self._kernel, self._interface, now - INTERVAL / 2)
        if dropped is None:
            return
        self.due, self._note_due = now + LOOK, now + INTERVAL
        self._notes.append(_Note(now, self._sent, dropped))
        self._forget(now)

    def _forget(self, now: float) -> None:
        while len(self._notes) > 1 and self._notes[1].time <= now - LOOKBACK:
            del self._notes[0]
