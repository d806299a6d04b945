"""Keeps the repairs of one transport factory up to date, and removes them at its end."""

from __future__ import annotations

import logging
import os
import weakref
from typing import TYPE_CHECKING

from bindsock.errors import UnsupportedSystem
from bindsock.repair.plan import plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindsock.kernel import Administration, Kernel, Repairs
    from bindsock.model.network import Network
    from bindsock.model.policy import Repair
    from bindsock.model.preferences import Preferences
    from bindsock.repair.plan import Plan

_logger = logging.getLogger("bindsock")


class Repairer:
    """Implements :class:`bindsock.kernel.Repairer`.

    Its repairs are removed by :meth:`close`, when it is freed, and when the interpreter exits. After a crash, the next repairer
    removes them at its first reading. If several processes repair, the last one removes the repairs.

    :param kernel: passes its readings to the repairer from now on
    :param preferences: an excluded interface gets no repair
    :param interface: the name of the only interface that gets repairs; all uplinks unless given
    :raises UnsupportedSystem: the system has no policy rules
    """

    def __init__(self, kernel: Kernel, preferences: Preferences, interface: str | None = None) -> None:
        administration = kernel.administration
        if administration is None:
            raise UnsupportedSystem("this system has no policy rules: repair_routes needs Linux")
        self.problem: str = ""
        self._administration: Administration = administration
        self._preferences = preferences
        self._interface = interface
        self._seen: Network | None = None
        self._existing = False
        self._repairs: Repairs | None = None
        self._end: weakref.finalize[..., Repairer] | None = None
        administration.repairer = self

    def repair(self, network: Network) -> bool:
        """Add the repairs that a reading needs. Does nothing for the same reading again.

        :return: whether routes have changed
        """
        if network is self._seen:
            return False
        self._seen = network
        try:
            changed = self._clean_up()
            return self._carry_out(network) or changed
        except OSError as error:
            self._set_problem(f"repair_routes was refused ({error.strerror or error}): it needs CAP_NET_ADMIN", log=True)
            return False

    def close(self) -> None:
        """Remove the repairs, unless another process repairs, too. Does nothing the second time."""
        self._seen = None
        self._existing = False
        if self._end is not None:
            self._end()
            self._end = self._repairs = None

    def _clean_up(self) -> bool:
        """At the first reading, remove the repairs that a crashed process has left."""
        if self._repairs is not None:
            return False
        self._repairs = repairs = self._administration.repairs()
        try:
            return bool(repairs.remove_all(orphans=True))
        finally:
            # The repairs' socket is open by now. At exit the newest finalizer runs first, so this one runs before the socket's.
            self._end = weakref.finalize(self, _end, repairs, os.getpid())

    def _carry_out(self, network: Network) -> bool:
        assert self._repairs is not None
        existing = self._repairs.existing() if self._existing else ()
        planned = self._plan(network, existing)
        if planned.make and not self._existing:
            # Another process may have added them already. The tables are only read if the plan adds something.
            existing = self._repairs.existing()
            planned = self._plan(network, existing)
        for repair in planned.remove:
            self._repairs.remove(repair)
            _logger.info("removed the repaired %s", _described(repair))
        for repair in planned.make:
            self._repairs.make(repair)
            _logger.info("added a %s; the gateway is known from %s", _described(repair), repair.gateway.named_by)
        self._existing = bool(existing or planned.make)
        self._set_problem("; ".join(map(str, planned.impossible)))
        return bool(planned.remove or planned.make)

    def _plan(self, network: Network, existing: Sequence[Repair]) -> Plan:
        return plan(network, self._preferences, existing, self._administration.gateway, interface=self._interface)

    def _set_problem(self, text: str, *, log: bool = False) -> None:
        if log and text != self.problem:
            _logger.warning("%s", text)
        self.problem = text


def _described(repair: Repair) -> str:
    return f"default route of {repair.interface} by {repair.gateway.address} in table {repair.table}"


def _end(repairs: Repairs, process: int) -> None:
    """Remove the repairs in the process that made them, but not in a forked one, and close the socket."""
    try:
        if os.getpid() == process:
            repairs.remove_all(orphans=True)
    except OSError as error:
        _logger.warning("cannot remove the repaired routes: %s; run `bindsock repair --undo`", error)
    finally:
        repairs.close()
