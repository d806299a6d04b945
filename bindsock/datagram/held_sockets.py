"""The sockets of an endpoint besides the current one.

Some were left for a better path, and still receive. Others are *ways*: an endpoint without a peer has one for each interface by
which one of its destinations leaves while the rest leaves by another (see :mod:`bindsock.datagram.ways`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from bindsock.datagram.plan import alive, device_alive
from bindsock.model.network import IPAddress

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from bindsock.datagram.drop_counter import DropCounter
    from bindsock.model.decision import Path
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime
    from bindsock.routing.effective import Decider

MAX_HELD_SOCKETS = 4
"""Sockets that were left and still receive."""
MAX_WAYS = 16

Way: TypeAlias = int | IPAddress | None
"""The index of an interface; an address of this host; ``None`` for a socket that is bound to nothing."""


@dataclass(slots=True, eq=False)
class HeldSocket:
    """A socket beside the current one."""

    sock: socket.socket
    way: Way
    path: Path | None
    source: IPAddress | None
    timer: Timer | None = None
    """When it is closed, if it was left."""
    drops: DropCounter | None = None
    """What its device has dropped, if it is sent by."""

    def works(self, decider: Decider) -> bool:
        """Whether anything can still come by it."""
        if self.path is not None:
            return alive(decider.network, self.path, self.source)
        return self.way is None or isinstance(self.way, int) or decider.is_local(self.way)


class HeldSockets:
    """Keeps the sockets that were left for ``overlap`` seconds, and the ways, or until their interface is gone.

    :param runtime: the event loop
    :param overlap: seconds
    :param discard: closes a socket, after it has been read to the last if the second argument is true
    :param lost: is told how many datagrams a dead device has dropped
    """

    __slots__ = ("_discard", "_held", "_lost", "_overlap", "_runtime")

    def __init__(
        self,
        runtime: Runtime,
        overlap: float,
        discard: Callable[[socket.socket, bool], None],
        lost: Callable[[int], None],
    ) -> None:
        self._runtime = runtime
        self._overlap = overlap
        self._discard = discard
        self._lost = lost
        self._held: list[HeldSocket] = []

    @property
    def sockets(self) -> list[socket.socket]:
        """All of them, the oldest first."""
        return [held.sock for held in self._held]

    @property
    def indices(self) -> frozenset[int]:
        """The indices of the interfaces that they are on."""
        return frozenset(held.path.index for held in self._held if held.path is not None)

    def keep(self, sock: socket.socket, path: Path, source: IPAddress | None) -> None:
        """Let a socket that was left receive for a while."""
        if self._runtime.closed:
            self._discard(sock, True)
            return
        held = HeldSocket(sock, path.index, path, source)
        held.timer = self._runtime.call_later(self._overlap, self._end, held)
        self._held.append(held)
        left = [held for held in self._held if held.timer is not None]
        if len(left) > MAX_HELD_SOCKETS:
            self._end(left[0])

    def add_way(self, held: HeldSocket) -> None:
        """Keep a socket that is sent by."""
        self._held.append(held)
        ways = [held for held in self._held if held.timer is None]
        if len(ways) > MAX_WAYS:
            self._end(ways[0])

    def way(self, way: Way) -> HeldSocket | None:
        """The socket of a way, which is kept from now on even if it was left; ``None`` if there is none."""
        held = next((held for held in self._held if held.way == way), None)
        if held is not None and held.timer is not None:
            held.timer.cancel()
            held.timer = None
        return held

    def take_back(self, index: int) -> socket.socket:
        """The socket on an interface, which is kept no longer."""
        held = next(held for held in self._held if held.path is not None and held.path.index == index)
        self._forget(held)
        return held.sock

    def end_at(self, index: int) -> None:
        """Close the socket on an interface, if there is one: another one takes its place there."""
        for held in [held for held in self._held if held.path is not None and held.path.index == index]:
            self._end(held)

    def end_dead(self, decider: Decider) -> None:
        """Close those by which nothing can come any more."""
        for held in [held for held in self._held if not held.works(decider)]:
            if held.drops is not None and held.path is not None and not device_alive(decider.network, held.path):
                self._lost(held.drops.lost(held.sock))
            self._end(held)

    def end_all(self) -> None:
        """Close all without reading what is left."""
        for held in list(self._held):
            self._forget(held)
            self._discard(held.sock, False)

    def _end(self, held: HeldSocket) -> None:
        self._forget(held)
        self._discard(held.sock, True)

    def _forget(self, held: HeldSocket) -> None:
        self._held.remove(held)
        if held.timer is not None:
            held.timer.cancel()
