"""The sockets of an endpoint besides the current one.

There are two kinds. Old sockets, which were replaced when a better path appeared, still receive for a while. *Ways* are the
sockets of an endpoint without a peer for those destinations that leave by another interface than the current socket (see
:mod:`bindsock.datagram.ways`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from bindsock.datagram.plan import Place, alive, device_alive, place_of
from bindsock.model.network import IPAddress
from bindsock.netmon.expiry import Expiry

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from bindsock.datagram.drop_counter import DropCounter
    from bindsock.model.decision import Path
    from bindsock.netmon.runtime import Runtime
    from bindsock.routing.effective import Decider

MAX_HELD_SOCKETS = 4
"""How many old sockets still receive. If there are more, the oldest is closed."""
MAX_WAYS = 16

Way: TypeAlias = int | IPAddress | None
"""What a way is bound to: the index of an interface, an address of this host, or ``None`` for nothing."""


@dataclass(slots=True, eq=False)
class HeldSocket:
    """A socket besides the current one."""

    sock: socket.socket
    way: Way
    path: Path | None
    source: IPAddress | None
    owner: HeldSockets
    until: float | None = None
    """When an old socket is closed; ``None`` for a way."""
    drops: DropCounter | None = None
    """Counts the drops of its device, if the endpoint sends by this socket."""

    def expire(self) -> None:
        """Close an old socket, because the overlap is over."""
        self.owner.end(self)

    def works(self, decider: Decider) -> bool:
        """Whether it can still receive."""
        if self.path is not None:
            return alive(decider.network, self.path, self.source)
        return self.way is None or isinstance(self.way, int) or decider.is_local(self.way)


class HeldSockets:
    """Keeps old sockets for ``overlap`` seconds, and ways, until their interface is gone.

    :param runtime: the event loop
    :param overlap: seconds for which an old socket still receives
    :param discard: closes a socket; if its second argument is true, it reads the remaining datagrams first
    :param lost: called with the number of datagrams that a dead device has dropped
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
        """All sockets, the oldest first."""
        return [held.sock for held in self._held]

    def places(self, port: int = 0) -> frozenset[Place]:
        """What the sockets are bound to.

        :param port: count only sockets that are bound to this port, too; 0 for any
        """
        return frozenset(
            place_of(held.path) for held in self._held if held.path is not None and port in (0, held.sock.getsockname()[1])
        )

    @property
    def everywhere(self) -> list[socket.socket]:
        """The sockets that are bound to no interface."""
        return [held.sock for held in self._held if not isinstance(held.way, int)]

    def keep(self, sock: socket.socket, path: Path, source: IPAddress | None) -> None:
        """Let an old socket receive for a while."""
        if self._runtime.closed:
            self._discard(sock, True)
            return
        held = HeldSocket(sock, path.index, path, source, self)
        self._runtime.shared(Expiry).add(held, self._overlap)
        self._held.append(held)
        if len(self._held) > MAX_HELD_SOCKETS:
            old = [held for held in self._held if held.until is not None]
            if len(old) > MAX_HELD_SOCKETS:
                self.end(old[0])

    def add_way(self, held: HeldSocket) -> None:
        """Keep a socket that the endpoint sends by."""
        self._held.append(held)
        ways = [held for held in self._held if held.until is None]
        if len(ways) > MAX_WAYS:
            self.end(ways[0])

    def way(self, way: Way, path: Path | None) -> HeldSocket | None:
        """The socket of a way; ``None`` if there is none. If it was an old socket, it becomes a way and is kept.

        :param path: the path by which it is to send. A socket that is bound to another local address is closed
        """
        held = next((held for held in self._held if held.way == way), None)
        if held is None:
            return None
        if held.path is not None and path is not None and place_of(held.path) != place_of(path):
            self._forget(held)
            self._runtime.call_soon(self._discard, held.sock, True)  # the program is sending now
            return None
        held.until = None
        return held

    def take_back(self, place: Place) -> socket.socket:
        """Remove the socket that is bound so, to become the current one again."""
        held = next(held for held in self._held if held.path is not None and place_of(held.path) == place)
        self._forget(held)
        return held.sock

    def end_at(self, index: int) -> None:
        """Close the socket on an interface, if there is one, because another one takes its place."""
        for held in [held for held in self._held if held.path is not None and held.path.index == index]:
            self.end(held)

    def end_dead(self, decider: Decider) -> None:
        """Close the sockets that cannot receive any more."""
        for held in [held for held in self._held if not held.works(decider)]:
            if held.drops is not None and held.path is not None and not device_alive(decider.network, held.path):
                self._lost(held.drops.lost_on_dead_device(held.sock))
            self.end(held)

    def end_all(self) -> None:
        """Close all sockets, without reading the remaining datagrams."""
        for held in list(self._held):
            self._forget(held)
            self._discard(held.sock, False)

    def end(self, held: HeldSocket) -> None:
        """Close a socket, after reading the remaining datagrams, unless the endpoint was closed as others were read."""
        if held in self._held:
            self._forget(held)
            self._discard(held.sock, True)

    def _forget(self, held: HeldSocket) -> None:
        self._held.remove(held)
        held.until = None
