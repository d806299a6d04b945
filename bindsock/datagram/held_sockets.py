"""The sockets of an endpoint besides the current one, which still receive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bindsock.datagram.plan import alive

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from bindsock.model.decision import Path
    from bindsock.model.network import IPAddress, Network
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime

MAX_HELD_SOCKETS = 4
"""Sockets that one endpoint keeps besides the current one."""


@dataclass(slots=True, eq=False)
class HeldSocket:
    """A socket that was left for a better path."""

    sock: socket.socket
    path: Path
    source: IPAddress | None
    timer: Timer | None = None


class HeldSockets:
    """Keeps sockets that were left for ``overlap`` seconds, or until their interface is gone.

    :param runtime: the event loop
    :param overlap: seconds
    :param discard: closes a socket, after it has been read to the last if the second argument is true
    """

    __slots__ = ("_discard", "_held", "_overlap", "_runtime")

    def __init__(self, runtime: Runtime, overlap: float, discard: Callable[[socket.socket, bool], None]) -> None:
        self._runtime = runtime
        self._overlap = overlap
        self._discard = discard
        self._held: list[HeldSocket] = []

    @property
    def sockets(self) -> list[socket.socket]:
        """All of them, the oldest first."""
        return [held.sock for held in self._held]

    @property
    def indices(self) -> frozenset[int]:
        """The indices of the interfaces that they are on."""
        return frozenset(held.path.index for held in self._held)

    def keep(self, sock: socket.socket, path: Path, source: IPAddress | None) -> None:
        """Let a socket receive for a while."""
        if self._runtime.closed:
            self._discard(sock, True)
            return
        held = HeldSocket(sock, path, source)
        held.timer = self._runtime.call_later(self._overlap, self._end, held)
        self._held.append(held)
        if len(self._held) > MAX_HELD_SOCKETS:
            self._end(self._held[0])

    def take_back(self, index: int) -> socket.socket:
        """The socket on an interface, which is kept no longer."""
        held = next(held for held in self._held if held.path.index == index)
        self._forget(held)
        return held.sock

    def end_dead(self, network: Network) -> None:
        """Close those by which nothing can come any more."""
        for held in [held for held in self._held if not alive(network, held.path, held.source)]:
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
