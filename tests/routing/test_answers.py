"""Decisions from the kernel's own answers: policy rules, router preferences, source addresses."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from bindsock.model.decision import Basis
from bindsock.model.network import Answers, Lookup, Network, Route
from bindsock.routing.effective import Decider, Preferences, decide
from bindsock.routing.sources import source_of
from bindsock.testing import network

if TYPE_CHECKING:
    from bindsock.model.network import IPAddress

V4, V6 = socket.AF_INET, socket.AF_INET6
ANYWHERE = ipaddress.ip_address("203.0.113.9")
WIFI, ETH, TUN = 1, 2, 3
INTERFACES = network(
    "wifi0 wifi 10.1.0.2/24 2001:db8:1::2/64\neth0 wired 10.2.0.2/24 2001:db8:2::2/64\ntun0 tunnel 10.66.0.2/24"
).interfaces
ANY = ipaddress.ip_network("0.0.0.0/0")
RULES = {(V4, 300): 0, (V4, 254): 1, (V4, 51820): 2, (V6, 254): 0}
"""The rules look up table 300 before main, and main before 51820."""


def by(
    index: int,
    *,
    table: int = 254,
    metric: int = 0,
    prefix: str = "0.0.0.0/0",
    preference: int = 0,
    source: IPAddress | None = None,
    needs_source: IPAddress | None = None,
) -> Lookup:
    """The kernel's answer that leads to an interface."""
    gateway = ipaddress.ip_address(f"10.{index}.0.1")
    route = Route(ipaddress.ip_network(prefix), index, gateway, metric, table, preference=preference)
    return Lookup(route, source, needs_source)


def asked(*found: Lookup, unbound: Lookup | None = None, tables: dict[tuple[socket.AddressFamily, int], int] = RULES) -> Network:
    """A network with these answers of the kernel."""
    defaults = {(lookup.route.interface or 0, V4): lookup for lookup in found}
    return Network(INTERFACES, (), defaults, {V4: unbound} if unbound is not None else {}, tables)


def name(made: Network, preferences: Preferences | None = None) -> str | None:
    interface = decide(made, V4, preferences or Preferences()).interface
    return interface.name if interface is not None else None


@pytest.mark.parametrize("reverse", [False, True])
def test_what_the_kernel_would_use_unbound_is_the_primary_uplink_whatever_the_metric_says(reverse: bool) -> None:
    lookups = [by(WIFI, metric=1), by(ETH, metric=900)]
    made = asked(*(reversed(lookups) if reverse else lookups), unbound=by(ETH, metric=900))
    assert name(made) == "eth0"


@pytest.mark.parametrize("reverse", [False, True])
def test_beneath_a_tunnel_the_tables_count_in_the_order_of_the_rules(reverse: bool) -> None:
    lookups = [by(WIFI, metric=1), by(ETH, metric=900, table=300)]
    made = asked(by(TUN, table=300), *(reversed(lookups) if reverse else lookups), unbound=by(TUN, table=300))
    decision = decide(made, V4)
    assert decision.interface is INTERFACES[ETH]
    assert decision.tunnels == ("tun0",)
    wifi0 = next(c for c in decision.candidates if c.interface == "wifi0")
    assert "eth0 has the default route of table 300" in wifi0.reason


def test_a_table_to_which_no_plain_rule_leads_comes_last() -> None:
    made = asked(by(WIFI, metric=900), by(ETH, table=1018), by(TUN), unbound=by(TUN))
    assert name(made) == "wifi0"


def test_beneath_a_tunnel_a_routers_preference_counts_among_equal_metrics() -> None:
    made = asked(by(WIFI, preference=-1), by(ETH, preference=1), by(TUN, metric=1), unbound=by(TUN, metric=1))
    decision = decide(made, V4)
    assert decision.interface is INTERFACES[ETH]
    assert any("the router with the higher preference" in c.reason for c in decision.candidates)


def test_the_pick_among_equal_next_hops_is_a_matter_of_the_destination() -> None:
    made = asked(by(WIFI), by(ETH), unbound=by(WIFI))
    other = Answers(by(ETH), {WIFI: by(WIFI), ETH: by(ETH)})

    def lookups(destination: IPAddress) -> Answers:
        return other if destination == ANYWHERE else Answers(by(WIFI), {WIFI: by(WIFI), ETH: by(ETH)})

    decider = Decider(made, lookups=lookups)
    assert decider.decide(ANYWHERE).interface is INTERFACES[ETH]
    assert decider.decide(ipaddress.ip_address("203.0.113.10")).interface is INTERFACES[WIFI]
    assert decider.decide(V4).interface is INTERFACES[WIFI]


def test_a_specific_route_in_a_table_that_the_kernel_would_not_use_is_left_alone() -> None:
    made = asked(by(WIFI), by(ETH, table=1018), unbound=by(WIFI))
    specific = by(ETH, table=1018, prefix="203.0.113.0/24")
    decision = decide(made, ANYWHERE, lookups=lambda destination: Answers(by(WIFI), {WIFI: by(WIFI), ETH: specific}))
    assert (decision.interface, decision.basis) == (INTERFACES[WIFI], Basis.DEFAULT_ROUTE)


def test_a_specific_route_that_the_kernel_would_use_is_taken() -> None:
    made = asked(by(WIFI), unbound=by(WIFI))
    specific = by(ETH, prefix="203.0.113.0/24")
    decision = decide(made, ANYWHERE, lookups=lambda destination: Answers(specific, {WIFI: by(WIFI), ETH: specific}))
    assert (decision.interface, decision.basis) == (INTERFACES[ETH], Basis.LONGEST_PREFIX)


def test_a_route_for_certain_sources_names_the_address_to_bind_to() -> None:
    source = ipaddress.ip_address("10.2.0.2")
    made = asked(by(ETH, table=1001, needs_source=source))
    decider = Decider(made, lookups=lambda destination: Answers(None, {ETH: by(ETH, table=1001, needs_source=source)}))
    for decision in (decider.decide(V4), decider.decide(ANYWHERE), decider.with_pin("eth0").decide(ANYWHERE)):
        assert (decision.interface, decision.source) == (INTERFACES[ETH], source)
        assert f"from {source}" in str(decision)
    path = decider.path(ANYWHERE)
    assert path is not None
    assert path.source == source


def test_an_uplink_without_an_address_is_bound_to_the_one_that_the_kernel_gives() -> None:
    bare = replace(INTERFACES[ETH], addresses=())
    source = ipaddress.ip_address("10.139.128.39")
    made = replace(asked(by(ETH, source=source), unbound=by(ETH)), interfaces={ETH: bare})
    decision = decide(made, V4)
    assert (decision.interface, decision.source) == (bare, source)
    assert decide(replace(made, defaults={(ETH, V4): by(ETH)}), V4).interface is None


WITH_VIRTUAL = network(
    "lo loopback 10.77.0.1/32\nwifi0 wifi 10.66.0.2/32 10.1.0.2/24\neth0 wired 10.66.0.3/32 10.2.0.2/24"
).interfaces


@pytest.mark.parametrize(
    ("lookup", "expected"),
    [
        (by(WIFI, table=220, source=ipaddress.ip_address("10.66.0.2")), "10.1.0.2"),
        (by(WIFI, table=254, source=ipaddress.ip_address("10.66.0.2")), None),
        (by(WIFI, table=220, source=ipaddress.ip_address("10.1.0.2")), None),
        (by(WIFI, table=220), None),
        (by(WIFI, table=220, source=ipaddress.ip_address("10.66.0.3")), "10.1.0.2"),
        (by(WIFI, table=220, source=ipaddress.ip_address("10.77.0.1")), None),
    ],
    ids=[
        "a virtual address in a table of its own",
        "main's own choice",
        "the uplink's own address",
        "no address named",
        "a virtual address that is still on another uplink",
        "an address of the whole host",
    ],
)
def test_policy_ipsecs_virtual_address_is_told_by_table_and_prefix(lookup: Lookup, expected: str | None) -> None:
    wifi0 = next(i for i in WITH_VIRTUAL.values() if i.name == "wifi0")
    found = source_of(lookup, wifi0, V4, WITH_VIRTUAL)
    assert (None if found is None else str(found)) == expected


DEPRECATED = network(
    "2: wifi0 wifi 2001:db8:2::5/64 fe80::2/64",
    "3: eth0 wired 203.0.113.5/24 2001:db8:3::5/64!deprecated 2001:db8:3::6/64!deprecated fe80::3/64",
    "4: wwan0 cellular 2001:db8:4::5/64!deprecated 2001:db8:4::6/64",
).interfaces


@pytest.mark.parametrize(
    ("index", "others", "family", "expected"),
    [
        (3, {2}, V6, "2001:db8:3::5"),
        (3, {4}, V6, "2001:db8:3::5"),
        (3, set(), V6, None),
        (3, {2}, V4, None),
        (2, {3, 4}, V6, None),
        (4, {2, 3}, V6, None),
    ],
    ids=[
        "another has a preferred address",
        "another has one of each",
        "no other has an address",
        "of the other family",
        "a preferred address",
        "one of each",
    ],
)
def test_deprecated_addresses_are_used_although_another_interface_has_a_preferred_one(
    index: int, others: set[int], family: socket.AddressFamily, expected: str | None
) -> None:
    interfaces = {i: interface for i, interface in DEPRECATED.items() if i == index or i in others}
    found = source_of(by(index), interfaces[index], family, interfaces)
    assert (None if found is None else str(found)) == expected


def test_a_tunnels_answer_is_none_of_the_uplinks() -> None:
    made = asked(by(TUN), unbound=by(TUN))
    decision = decide(made, V4)
    assert decision.interface is None
    assert any(
        c.interface == "wifi0" and "has no default route for a socket that is bound to it" in c.reason
        for c in decision.candidates
    )


def test_an_alternative_name_is_as_good_as_the_name_and_yields_to_one() -> None:
    made = network("eno1 wired 10.1.0.2/24 altname enp3s0\neth9 wired 10.2.0.2/24 altname eno1", "default via 10.1.0.1 dev eno1")
    assert made.named("enp3s0") == made.named("eno1") == made.interfaces[1]
    assert decide(made, V4, interface="enp3s0").interface is made.interfaces[1]
    assert decide(made, V4, Preferences(exclude=["enp*"])).interface is None
    assert decide(made, V4, Preferences(include=["enp*"])).interface is made.interfaces[1]
