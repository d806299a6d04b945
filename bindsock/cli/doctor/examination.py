"""Collects the report about the network. Each part is collected by itself, so that one that fails does not affect the others."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, TypeVar

from bindsock.cli import documents
from bindsock.cli.doctor import programs, system
from bindsock.cli.doctor.firewall import exempt_mark, obstacles
from bindsock.cli.options import no_such_interface
from bindsock.model.network import InterfaceKind, family_name
from bindsock.netmon.no_interface import ANYWHERE, default_route_hint
from bindsock.routing.usable import why_dead, why_unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bindsock.kernel import Kernel
    from bindsock.model.decision import Decision
    from bindsock.model.network import Interface, Route
    from bindsock.model.policy import PolicyRule
    from bindsock.routing.effective import Decider

T = TypeVar("T")


class Examination:
    """Collects the report, and records what could not be read.

    :param kernel: the kernel to ask
    :param decider: makes decisions about a reading of that kernel
    :param families: the address families to report about
    """

    def __init__(self, kernel: Kernel, decider: Decider, families: Sequence[socket.AddressFamily]) -> None:
        self._kernel = kernel
        self._decider = decider
        self._families = families
        self.failures: list[str] = []
        """What could not be read, and why."""

    def report(self) -> dict[str, Any]:
        """The report, without the probe and the advice."""
        network, kernel = self._decider.network, self._kernel
        decisions = [self._decider.decide(family) for family in self._families]
        pin = network.named(self._decider.pin) if self._decider.pin is not None else None
        uplinks = [self._uplink(i, decisions) for i in network.interfaces.values() if _may_be_uplink(i) or i is pin]
        rules: tuple[PolicyRule, ...] = ()
        routes: tuple[Route, ...] = network.routes
        if (administration := kernel.administration) is not None:
            rules = self._try("policy rules", lambda: tuple(administration.rules()), ())
            routes = self._try("routes", lambda: tuple(administration.routes()), routes)
        chains, unread = system.firewall() if administration is not None else ([], [])
        pinned = self._pinned(uplinks)
        fit = [
            u["name"] for u in uplinks if any(f["fit"] for f in u["families"]) and (pinned is None or pinned["name"] == u["name"])
        ]
        return {
            "machine": system.machine(),
            "capabilities": system.capabilities(),
            "container": system.container(),
            "pinned": pinned,
            "effective": [documents.decision(decision) for decision in decisions],
            "default": [
                {"family": family_name(o.family), "interface": o.interface, "tunnel": o.tunnel, "how": o.how}
                for o in programs.ownership(network, rules, routes)
                if o.family in self._families
            ],
            "programs": [{"program": g.program, "evidence": g.evidence} for g in programs.guesses(network, rules, routes)],
            "rules": [f"{family_name(rule.family)} {rule}" for rule in rules],
            "uplinks": uplinks,
            "firewall": {
                "obstacles": [
                    {
                        "interface": o.interface,
                        "family": family_name(socket.AddressFamily(o.family)) if o.family else None,
                        "verdict": o.verdict,
                        "certain": o.certain,
                        "rule": o.rule,
                        "exempt_mark": exempt_mark(chains, o),
                    }
                    for o in obstacles(chains, fit, self._decider.preferences.mark)
                ],
                "failures": unread,
            },
            "multipath": system.multipath(),
            "names": system.names(),
            "failures": self.failures,
        }

    def _pinned(self, uplinks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The only interface to use, and why it cannot be used, if it cannot."""
        name, network = self._decider.pin, self._decider.network
        if name is None:
            return None
        interface = network.named(name)
        if interface is None:
            return {"name": name, "problem": no_such_interface(name, network)}
        families = [family for uplink in uplinks if uplink["name"] == interface.name for family in uplink["families"]]
        reasons = " and ".join(dict.fromkeys(family["reason"] for family in families if not family["fit"]))
        problem = f"{interface.name} is pinned, but {reasons}: omit --interface, or name another"
        return {"name": interface.name, "problem": None if any(family["fit"] for family in families) else problem}

    def _uplink(self, interface: Interface, decisions: Sequence[Decision]) -> dict[str, Any]:
        administration = self._kernel.administration
        strict = None
        if administration is not None and interface.up:
            strict = self._try(f"rp_filter of {interface.name}", lambda: administration.filters_strictly(interface), None)
        return {
            "name": interface.name,
            "kind": str(interface.kind),
            "addresses": [f"{a.address}/{a.prefix_length}" for a in interface.addresses],
            "strict_filter": strict,
            "families": [self._family(interface, decision) for decision in decisions],
        }

    def _family(self, interface: Interface, decision: Decision) -> dict[str, Any]:
        family = decision.family
        network = self._decider.network
        lookup = network.defaults.get((interface.index, family))
        # A pin is obeyed whatever the preferences, even to a tunnel; but nothing beyond this host is reached by the loopback.
        pin = self._decider.pin
        pinned = pin is not None and interface.called(pin) and interface.kind is not InterfaceKind.LOOPBACK
        refusal = (
            why_dead(interface, family, lookup) if pinned else why_unusable(interface, family, self._decider.preferences, lookup)
        )
        usable = refusal is None and lookup is not None and lookup.usable
        candidate = next((c for c in decision.candidates if c.index == interface.index and not c.taken), None)
        reason = refusal.reason if refusal is not None else candidate.reason if candidate is not None else "has no default route"
        hint = gateway = None
        if refusal is None:
            if not usable and not self._kernel.has_route(interface, ANYWHERE[family]):
                hint = default_route_hint(self._kernel, interface, family)
            administration = self._kernel.administration
            if usable and lookup is not None:
                gateway = str(lookup.route.gateway) if lookup.route.gateway is not None else None
            elif administration is not None:
                known = self._try(f"gateway of {interface.name}", lambda: administration.gateway(interface, family), None)
                gateway = f"{known.address} (by {known.named_by})" if known is not None else None
        return {
            "family": family_name(family),
            "fit": refusal is None,
            "usable": usable,
            "effective": decision.interface is not None and decision.interface.index == interface.index,
            "reason": None if usable else reason,
            "gateway": gateway,
            "route_hint": hint,
        }

    def _try(self, what: str, ask: Callable[[], T], otherwise: T) -> T:
        try:
            return ask()
        except OSError as error:
            self.failures.append(f"{what}: {error.strerror or error}")
            return otherwise


def _may_be_uplink(interface: Interface) -> bool:
    return interface.kind not in (InterfaceKind.LOOPBACK, InterfaceKind.TUNNEL, InterfaceKind.DUMMY)
