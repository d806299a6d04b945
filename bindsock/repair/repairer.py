"""Keeps the repairs of one transport factory up to date, and removes them at its end."""

from __future__ import annotations

import logging
import os
import weakref
from typing import TYPE_CHECKING

from bindsock.errors import UnsupportedSystem
from bindsock.repair.plan import plan

if TYPE_CHECKING:
    from bindsock.kernel import Administration, Kernel, Repairs
    from bindsock.model.network import Network
    from bindsock.model.policy import Repair
    from bindsock.model.preferences import Preferences

_logger = logging.getLogger("bindsock")


class Repairer:
    """A :class:`bindsock.kernel.Repairer`.

    What it has made is removed by :meth:`close`, when it is collected, and when the interpreter exits; after a crash by the next
    one, at its first reading. Where several processes repair, the last one removes.

    :param kernel: whose readings it is shown from now on
    :param preferences: an interface that they exclude gets nothing
    :raises UnsupportedSystem: the system has no policy rules
    """

    def __init__(self, kernel: Kernel, preferences: Preferences) -> None:
        administration = kernel.administration
        if administration is None:
            raise UnsupportedSystem("repair_routes needs Linux: this system has no policy rules")
        self.problem: str = ""
        self._administration: Administration = administration
        self._preferences = preferences
        self._seen: Network | None = None
        self._standing = False
        self._repairs: Repairs | None = None
        self._end: weakref.finalize[..., Repairer] | None = None
        administration.repairer = self

    def repair(self, network: Network) -> bool:
        """Repair what the reading shows to be missing; the same reading again costs nothing."""
        if network is self._seen:
            return False
        self._seen = network
        try:
            changed = self._clean_up()
            return self._carry_out(network) or changed
        except OSError as error:
            self._say(f"repair_routes was refused ({error.strerror or error}): it takes CAP_NET_ADMIN", log=True)
            return False

    def close(self) -> None:
        """Remove what was made, unless another process repairs as well. Closing twice is harmless."""
        self._seen = None
        self._standing = False
        if self._end is not None:
            self._end()
            self._end = self._repairs = None

    def _clean_up(self) -> bool:
        """At the first reading: remove what a crash has left."""
        if self._repairs is not None:
            return False
        self._repairs = repairs = self._administration.repairs()
        try:
            return bool(repairs.remove_all(orphans=True))
        finally:
            # After that of the socket, which has been opened by now: at exit the newest finalizer comes first.
            self._end = weakref.finalize(self, _end, repairs, os.getpid())

    def _carry_out(self, network: Network) -> bool:
        assert self._repairs is not None
        standing = self._repairs.existing() if self._standing else ()
        planned = plan(network, self._preferences, standing, self._administration.gateway)
        if planned.make and not self._standing:
            # Another process may have made them; a plan that makes nothing needs no look at the tables.
            standing = self._repairs.existing()
            planned = plan(network, self._preferences, standing, self._administration.gateway)
        for repair in planned.remove:
            self._repairs.remove(repair)
            _logger.info("removed the repaired %s", _described(repair))
        for repair in planned.make:
            self._repairs.make(repair)
            _logger.info("repaired the %s, which %s names", _described(repair), repair.gateway.named_by)
        self._standing = bool(standing or planned.make)
        self._say("; ".join(map(str, planned.impossible)))
        return bool(planned.remove or planned.make)

    def _say(self, text: str, *, log: bool = False) -> None:
        if log and text != self.problem:
            _logger.warning("%s", text)
        self.problem = text


def _described(repair: Repair) -> str:
    return f"default route of {repair.interface} by {repair.gateway.address} in table {repair.table}"


def _end(repairs: Repairs, process: int) -> None:
    """Remove and close, in the process that made the repairs, not in one that it has forked."""
    try:
        if os.getpid() == process:
            repairs.remove_all(orphans=True)
    except OSError as error:
        _logger.warning("the repaired routes could not be removed: %s; `bindsock repair --undo` does it", error)
    finally:
        repairs.close()
