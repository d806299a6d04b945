"""Ends the subflows that a multipath connection has left, once nothing is under way by them.

What arrives for a subflow that has ended has no socket any more: the system answers with resets that belong to none, and so
follow the routing table into the tunnel. And a peer that has not got all that was sent by a subflow does not accept its reset
(RFC 5961, 3.2): it keeps the subflow, counts it towards its limit, and refuses the next one.

So a subflow that is left first becomes a backup (MP_PRIO, RFC 8684 3.3.8): neither side sends new data by it while another works.
"""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.kernel import PathManager
    from bindsock.model.network import IPAddress
    from bindsock.model.subflows import Traffic
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime

_logger = logging.getLogger("bindsock")

LEFT_WITHIN = 5.0
"""Seconds after which a subflow is ended though something is still under way by it."""
QUIET = 1.0
"""Seconds, besides two round trips, for which the peer has sent no data by a subflow if nothing of it is under way. What was lost
at the end is repeated after 0.2 seconds and two round trips (Linux ``net/ipv4/tcp_output.c``, tcp_schedule_loss_probe), and after
twice the time if that is lost, too."""
ANSWERED_WITHIN = 0.25
"""Seconds, besides two round trips, after which a subflow is ended because the peer acknowledges nothing by it. Then the system
sends its data by another one."""
AGAIN = 0.25
"""Seconds, besides two round trips, after which the peer is told again that a subflow is a backup if it still sends by it."""
_SOONEST, _LATEST = 0.005, 0.05
"""The bounds, in seconds, of the delay between two checks. The delay is a quarter of the time since the beginning."""


class Departures:
    """The subflows that one connection has left and that are not ended yet.

    :param sock: returns the socket of the connection, ``None`` once it is closed
    :param end: called with the local address of the subflows that are to be ended now
    """

    def __init__(
        self, runtime: Runtime, paths: PathManager, sock: Callable[[], socket.socket | None], end: Callable[[IPAddress], object]
    ) -> None:
        self._runtime = runtime
        self._paths = paths
        self._sock = sock
        self._end = end
        self._began: dict[IPAddress, float] = {}
        """When the connection has left each local address."""
        self._backups: set[IPAddress] = set()
        """The local addresses that were to be backups and are not taken back."""
        self._told_at = 0.0
        """When the peer was last told of a backup."""
        self._left_alone: set[IPAddress] = set()
        """Local addresses of subflows that are the system's."""
        self._timer: Timer | None = None

    def begin(self, address: IPAddress) -> None:
        """End the subflows with a local address once nothing is under way by them: at once, or within :data:`LEFT_WITHIN`."""
        sock = self._sock()
        if sock is None or address in self._began or address in self._left_alone:
            return
        traffic = self._paths.traffic(sock, address)
        if traffic is None or _is_over(traffic, 0.0):
            self._end(address)
            return
        self._began[address] = self._runtime.time()
        self._tell(sock, address)
        self._wait()

    def take_back(self, address: IPAddress) -> None:
        """Keep the subflows with a local address: the connection is there again."""
        self._began.pop(address, None)
        sock = self._sock()
        if address in self._backups and sock is not None:
            self._backups.discard(address)
            self._set_backup(sock, address, self._not_told, backup=False)

    def forget(self, address: IPAddress) -> None:
        """Do nothing more about the subflows with a local address: they are ended for another reason."""
        self._began.pop(address, None)

    def leave_alone(self, address: IPAddress) -> None:
        """Do not end the subflows with a local address, because they are the system's."""
        self._left_alone.add(address)

    def consider(self, address: IPAddress) -> None:
        """End the subflows with a local address as others, because one of them has been ordered here."""
        self._left_alone.discard(address)
        self._began.pop(address, None)

    def suspend(self) -> None:
        """End nothing more: keep what is being left."""
        for address in list(self._began):
            self.take_back(address)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self, sock: socket.socket, address: IPAddress) -> None:
        self._told_at = self._runtime.time()
        self._backups.add(address)
        self._set_backup(sock, address, functools.partial(self._told, address), backup=True)

    def _set_backup(
        self, sock: socket.socket, address: IPAddress, done: Callable[[bool | OSError], object], *, backup: bool
    ) -> None:
        try:
            self._paths.set_backup(sock, address, done, backup=backup)
        except OSError as error:
            done(error)

    def _told(self, address: IPAddress, outcome: bool | OSError) -> None:
        """Note whether the subflow is a backup now. Otherwise both sides go on sending by it, so there is nothing to wait for."""
        self._not_told(outcome)
        if outcome is not True and self._began.pop(address, None) is not None:
            self._end(address)

    @staticmethod
    def _not_told(outcome: bool | OSError) -> None:
        if isinstance(outcome, OSError):
            _logger.debug("cannot say whether a subflow of a multipath connection is a backup: %s", outcome)

    def _wait(self) -> None:
        if self._timer is None and self._began:
            elapsed = self._runtime.time() - max(self._began.values())
            self._timer = self._runtime.call_later(min(max(elapsed / 4, _SOONEST), _LATEST), self._check)

    def _check(self) -> None:
        self._timer = None
        sock = self._sock()
        if sock is None:
            self._began.clear()
            return
        now = self._runtime.time()
        for address, began in list(self._began.items()):
            traffic = self._paths.traffic(sock, address)
            if traffic is None or _is_over(traffic, now - began):
                del self._began[address]
                self._end(address)
            elif now - self._told_at - traffic.silence > AGAIN + 2 * traffic.round_trip:
                self._tell(sock, address)
        self._wait()


def _is_over(traffic: Traffic, elapsed: float) -> bool:
    """Whether nothing is under way any more, or nothing is to be expected.

    :param elapsed: seconds since the connection has left the subflow
    """
    if elapsed >= LEFT_WITHIN:
        return True
    if traffic.pending:
        return min(traffic.unanswered, elapsed) > ANSWERED_WITHIN + 2 * traffic.round_trip
    return traffic.silence > QUIET + 2 * traffic.round_trip
