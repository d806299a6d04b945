"""How many datagrams a device took to its grave.

When the carrier goes, ``send()`` still succeeds until the kernel has noticed, up to a second later
(``linux net/core/link_watch.c``), and what it took meanwhile is dropped without a word to anybody. A device only counts what it
drops, for all who send by it. So:

* While a socket sends, the device's counter is noted twice a second, once for all sockets on the device.
* When the device turns out to be dead, what it has dropped since the note of two seconds ago is what the carrier cost; a socket
  accounts for as much of that as it has itself sent in that time, and no two sockets account for the
  same drop.

That is exact where nobody else sends by the device, and an upper bound otherwise.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bindsock.kernel import Kernel
    from bindsock.network import Interface

INTERVAL = 0.5
"""Seconds between two notes."""
LOOKBACK = 2.0
"""Seconds before the end that may have been lost: the kernel's second, and one for what it takes to act."""


class _Note(NamedTuple):
    time: float
    sent: int
    dropped: int


class Devices:
    """What the devices have dropped and nobody has accounted for, shared by all sockets of one kernel.

    :param kernel: what to ask
    :param clock: monotonic seconds
    """

    def __init__(self, kernel: Kernel, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._kernel = kernel
        self._claimed: dict[int, int] = {}
        self._latest: dict[int, tuple[float, int]] = {}

    def dropped(self, interface: Interface, not_before: float) -> int | None:
        """The count, as it was no earlier than a time (infinity: asks at all events); ``None`` where it is unknown."""
        latest = self._latest.get(interface.index)
        if latest is None or latest[0] < not_before:
            count = self._kernel.dropped(interface)
            if count is None:
                return None
            latest = self._latest[interface.index] = (self.clock(), count)
        return latest[1] - self._claimed.get(interface.index, 0)

    def claim(self, interface: Interface, count: int) -> None:
        """Account for drops."""
        self._claimed[interface.index] = self._claimed.get(interface.index, 0) + count


_devices: weakref.WeakKeyDictionary[Kernel, Devices] = weakref.WeakKeyDictionary()


def devices_of(kernel: Kernel) -> Devices:
    """The one of a kernel."""
    devices = _devices.get(kernel)
    if devices is None:
        devices = _devices[kernel] = Devices(weakref.proxy(kernel))
    return devices


class SendRecord:
    """What one socket has lately sent by its device."""

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._interface: Interface | None = None
        self._notes: deque[_Note] = deque()
        self._sent = 0
        self.due = float("inf")
        """When :meth:`note` is due next."""

    def start(self, interface: Interface | None) -> None:
        """From now on the socket sends by that interface."""
        self._interface = interface
        self._notes.clear()
        self._sent = 0
        self.due = float("inf")
        if interface is not None:
            self.note(self._devices.clock())

    def sent(self, now: float) -> None:
        """The device has taken a datagram."""
        self._sent += 1
        if now >= self.due:
            self.note(now)

    def note(self, now: float) -> None:
        """Write down how things stand."""
        assert self._interface is not None
        dropped = self._devices.dropped(self._interface, now - INTERVAL / 2)
        if dropped is None:
            self.due = float("inf")
            return
        self.due = now + INTERVAL
        self._notes.append(_Note(now, self._sent, dropped))
        while len(self._notes) > 1 and self._notes[1].time <= now - LOOKBACK:
            self._notes.popleft()

    def lost(self) -> int:
        """The device is dead: how many of the socket's datagrams it had taken and dropped. They are not counted again."""
        if self._interface is None or not self._notes:
            return 0
        now = self._devices.clock()
        while len(self._notes) > 1 and self._notes[1].time <= now - LOOKBACK:
            self._notes.popleft()
        before = self._notes[0]
        dropped = self._devices.dropped(self._interface, float("inf")) if self._sent > before.sent else None
        lost = max(0, min(self._sent - before.sent, dropped - before.dropped)) if dropped is not None else 0
        self._devices.claim(self._interface, lost)
        self.start(None)
        return lost
