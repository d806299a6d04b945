"""The changes of the network in one round: a sequence of actions that the seed determines."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bindsock.testing.lab import Lab, VpnMode

Verb = Literal[
    "down", "up", "unplug", "plug", "remove-addresses", "add-addresses", "renumber", "default", "metric",
    "delete", "create", "blackhole", "whitehole", "vpn-up", "vpn-down", "vpn-crash", "wait",
]  # fmt: skip

SHORT, MEDIUM, LONG = 0.03, 0.4, 2.0
"""The longest pauses between two actions, in seconds."""
BLOCKING: tuple[VpnMode, ...] = ("replace", "policy-kill")
"""The modes that leave no path for IPv4 outside the VPN while it is up."""
MARKING: tuple[VpnMode, ...] = ("policy", "policy-kill")
"""The modes in which the VPN marks its own packets."""


@dataclass(frozen=True, slots=True)
class Action:
    """A change of the network, and the pause before it."""

    pause: float
    """Seconds to wait before the change."""
    verb: Verb
    subject: str = ""
    """The uplink, or the mode of the VPN."""
    value: str = ""

    def __str__(self) -> str:
        words = " ".join(filter(None, (self.verb, self.subject, self.value)))
        return f"+{self.pause:.3f} {words}"


@dataclass(slots=True)
class UplinkState:
    """The state of an uplink after the actions so far."""

    number: int
    exists: bool = True
    up: bool = True
    plugged: bool = True
    addressed: bool = True
    blackholed: bool = False
    site: str = "a"

    @property
    def routable(self) -> bool:
        return self.exists and self.up and self.addressed


class Network:
    """The state of the network after the actions so far.

    :param uplinks: their names
    :param mode: how the VPN takes the default route; ``None`` for no VPN
    """

    def __init__(self, uplinks: Sequence[str], mode: VpnMode | None) -> None:
        self.uplinks = {name: UplinkState(number) for number, name in enumerate(uplinks, start=1)}
        self.mode = mode
        self.vpn = False
        self.crashed = False

    def apply(self, action: Action) -> None:
        """Update the state for an action."""
        match action.verb:
            case "vpn-up":
                self.vpn, self.crashed = True, False
            case "vpn-down":
                self.vpn = False
            case "vpn-crash":
                self.vpn, self.crashed = False, True
            case "wait":
                pass
            case _:
                self._apply_to_uplink(self.uplinks[action.subject], action)

    def _apply_to_uplink(self, uplink: UplinkState, action: Action) -> None:
        match action.verb:
            case "down":
                uplink.up = False
            case "up":
                uplink.up = uplink.addressed = True
            case "unplug" | "plug":
                uplink.plugged = action.verb == "plug"
            case "remove-addresses" | "add-addresses":
                uplink.addressed = action.verb == "add-addresses"
            case "renumber":
                uplink.site, uplink.addressed = action.value, True
            case "delete":
                uplink.exists = False
            case "create":
                uplink.exists = uplink.up = uplink.plugged = uplink.addressed = True
            case "blackhole" | "whitehole":
                uplink.blackholed = action.verb == "blackhole"

    def possible(self) -> list[tuple[Verb, str, str]]:
        """The possible next actions: verb, subject and value."""
        found: list[tuple[Verb, str, str]] = []
        for name, uplink in self.uplinks.items():
            if not uplink.exists:
                found.append(("create", name, ""))
                continue
            found += [("whitehole" if uplink.blackholed else "blackhole", name, ""), ("delete", name, "")]
            found.append(("unplug" if uplink.plugged else "plug", name, ""))
            found.append(("down" if uplink.up else "up", name, ""))
            if uplink.up:
                found.append(("remove-addresses" if uplink.addressed else "add-addresses", name, ""))
            if uplink.routable:
                found.append(("renumber", name, "b" if uplink.site == "a" else "a"))
                found.append(("default", name, ""))
                found += [("metric", name, str(base + uplink.number)) for base in (300, 800)]
        if self.mode is not None:
            found += [("vpn-down", "", ""), ("vpn-crash", "", "")] if self.vpn else [("vpn-up", self.mode, "")]
        return found

    def restoring(self) -> list[Action]:
        """Actions that make the whole network usable again. They start the VPN if connections can bypass it."""
        actions = []
        for name, uplink in self.uplinks.items():
            verbs: list[Verb] = []
            if not uplink.exists:
                verbs.append("create")
            else:
                verbs += [] if uplink.plugged else ["plug"]
                verbs += ["up"] if not uplink.up else [] if uplink.addressed else ["add-addresses"]
            verbs += ["whitehole"] if uplink.blackholed else []
            actions += [Action(SHORT, verb, name) for verb in verbs]
        if self.mode is not None and (not self.vpn or self.mode in BLOCKING):
            # A VPN that crashed leaves its rules behind, and the uplinks' default routes stay deleted, until a VPN ends properly.
            actions += [] if self.vpn else [Action(SHORT, "vpn-up", self.mode)]
            actions += [Action(SHORT, "vpn-down")] if self.mode in BLOCKING else []
        return actions


def plan(seed: str, uplinks: Sequence[str], mode: VpnMode | None, seconds: float) -> list[Action]:
    """The actions of a round.

    :param mode: how the VPN takes the default route; ``None`` for no VPN
    :param seconds: the duration of all actions together
    """
    generator = random.Random(seed)
    network = Network(uplinks, mode)
    actions: list[Action] = []

    def add(action: Action) -> None:
        network.apply(action)
        actions.append(action)

    if mode is not None:
        add(Action(SHORT, "vpn-up", mode))
    left = seconds
    while left > 0:
        longest = generator.choices((SHORT, MEDIUM, LONG), (3, 5, 1))[0]
        pause = round(min(left, generator.uniform(0.0, longest)), 3)
        verbs = sorted({verb for verb, _, _ in network.possible()})
        verb = generator.choice(verbs)
        _, subject, value = generator.choice([what for what in network.possible() if what[0] == verb])
        add(Action(pause, verb, subject, value))
        left -= max(pause, 0.001)
    return actions


def with_end(actions: Sequence[Action], uplinks: Sequence[str], mode: VpnMode | None) -> list[Action]:
    """The actions, followed by those that make the network usable again."""
    network = Network(uplinks, mode)
    for action in actions:
        network.apply(action)
    return [*actions, *network.restoring()]


def carry_out(lab: Lab, action: Action) -> None:
    """Apply an action to the laboratory."""
    name = action.subject
    match action.verb:
        case "down":
            lab.down(name)
        case "up":
            lab.up(name)
        case "unplug" | "plug":
            lab.carrier(name, action.verb == "plug")
        case "remove-addresses":
            lab.remove_addresses(name)
        case "add-addresses":
            lab.add_addresses(name)
        case "renumber":
            lab.renumber(name, "b" if action.value == "b" else "a")
        case "default":
            lab.default(name)
        case "metric":
            lab.metric(name, int(action.value))
        case "delete":
            lab.delete(name)
        case "create":
            lab.create(name)
        case "blackhole" | "whitehole":
            lab.blackhole(name, action.verb == "blackhole")
        case "vpn-up":
            mode: VpnMode = name  # type: ignore[assignment]
            lab.vpn_up(mode, outer="fwmark" if mode in MARKING else "host-route")
        case "vpn-down" | "vpn-crash":
            lab.vpn_down(crash=action.verb == "vpn-crash")
        case "wait":
            pass
