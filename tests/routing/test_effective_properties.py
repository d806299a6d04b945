"""Properties that hold for any network."""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from bindsock.model.decision import Basis, path_of
from bindsock.model.network import (
    FAMILIES,
    Interface,
    InterfaceAddress,
    InterfaceKind,
    Network,
    Route,
    RouteKind,
    Target,
    family_of,
    unmapped,
)
from bindsock.model.prefixes import PrefixTable, is_default_in_disguise
from bindsock.model.tables import TableAnswers, tabulated
from bindsock.routing.effective import Decider, Preferences, decide, is_expensive
from bindsock.testing import network

if TYPE_CHECKING:
    from bindsock.model.network import IPAddress

NAMES = ("en0", "en1", "eth0", "wifi0", "utun0", "ppp0", "docker0", "lo")
INDICES = tuple(range(1, len(NAMES) + 1))

# Few addresses and prefixes, so that addresses often match a prefix.
ADDRESSES = tuple(
    map(
        ipaddress.ip_address,
        (
            *(
                "10.1.0.2",
                "10.1.0.3",
                "10.2.0.2",
                "169.254.1.1",
                "127.0.0.1",
                "0.0.0.0",
                "224.0.0.251",
                "203.0.113.9",
                "192.168.1.9",
            ),
            *(
                "fe80::1",
                "fe80::1%2",
                "fe80::1%en1",
                "fe80::2%zz",
                "2001:db8::2",
                "fd00::5",
                "::1",
                "::",
                "ff02::fb%3",
                "ff05::2",
            ),
            *("::ffff:10.1.0.2", "::ffff:203.0.113.9", "2606:4700::1"),
        ),
    )
)
PREFIXES = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8", "10.1.0.0/16", "203.0.113.9/32", "169.254.0.0/16"),
            *("::/0", "2000::/3", "::/1", "fe80::/64", "2001:db8::/32", "fd00::/8", "ff00::/8"),
        ),
    )
)
DEFAULTS = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
OWN = {index: (ipaddress.ip_address(f"10.77.{index}.2"), ipaddress.ip_address(f"2001:db8:{index}::2")) for index in INDICES}
PATTERNS = ("en*", "*", "docker*", "eth0", "wifi?", "utun*")

addresses = st.sampled_from(ADDRESSES)
interface_addresses = st.builds(
    InterfaceAddress,
    addresses.map(lambda a: ipaddress.ip_address(a.packed)),
    st.sampled_from((8, 24, 32)),
    tentative=st.booleans(),
)
routes = st.builds(
    Route,
    st.sampled_from(PREFIXES),
    st.none() | st.sampled_from((*INDICES, 99)),
    st.none() | addresses,
    metric=st.sampled_from((0, 50, 100)),
    table=st.sampled_from((254, 254, 254, 253, 52, 51820)),
    scoped=st.booleans(),
    kind=st.sampled_from((RouteKind.UNICAST,) * 8 + tuple(RouteKind)),
)


likely = st.sampled_from((True, True, True, True, False))


@st.composite
def networks(draw: st.DrawFn, *, sound: bool = False) -> Network:
    """Any network. In a sound one, most interfaces have addresses and default routes, and the kernel confirms these routes."""
    interfaces = {}
    found = draw(st.lists(routes, max_size=12))
    for index, name in zip(INDICES, NAMES, strict=True):
        if not draw(likely):
            continue
        held = draw(st.lists(interface_addresses, max_size=2))
        if sound and draw(likely):
            held += [InterfaceAddress(a, 24) for a in OWN[index]]
        interfaces[index] = Interface(
            name,
            index,
            draw(st.sampled_from(tuple(InterfaceKind))),
            up=draw(likely),
            running=draw(likely),
            addresses=tuple(held),
            delegate=draw(st.none() | st.sampled_from((*INDICES, 0, 99))),
            expensive=draw(st.booleans()),
            last_resort=name == "ppp0" and draw(st.booleans()),
        )
        if sound:
            found += [
                dataclasses.replace(draw(routes), destination=default, interface=index, kind=RouteKind.UNICAST)
                for default in DEFAULTS
                if draw(st.booleans())
            ]
    refused = (
        () if sound else draw(st.frozensets(st.tuples(st.sampled_from((*INDICES, 99)), st.sampled_from(FAMILIES)), max_size=4))
    )
    return tabulated(interfaces, found, refused=refused)


patterns: st.SearchStrategy[list[str]] = st.just([]) | st.lists(st.sampled_from(PATTERNS), max_size=2)
preferences = st.builds(
    Preferences,
    include=patterns,
    exclude=patterns,
    expensive=patterns,
    cost=st.sampled_from(("avoid", "cheapest", "ignore", "never")),
    tunnels=st.sampled_from(("bypass", "split")),
)
targets: st.SearchStrategy[Target] = st.sampled_from(FAMILIES) | addresses | st.ip_addresses()
pins = st.none() | st.sampled_from((*NAMES, "missing"))


@given(networks(), targets, preferences, pins)
def test_any_network_gives_a_whole_decision(made: Network, target: Target, wishes: Preferences, pin: str | None) -> None:
    decision = decide(made, target, wishes, interface=pin)

    assert decision.target == target
    assert decision.family == (target if isinstance(target, int) else family_of(unmapped(target)))
    assert not (decision.unbound and decision.interface is not None)
    taken = [candidate for candidate in decision.candidates if candidate.taken]
    assert [c.interface for c in taken] == ([] if decision.interface is None else [decision.interface.name])
    assert decision.candidates[: len(taken)] == tuple(taken)
    assert all(candidate.reason for candidate in decision.candidates)
    assert len({candidate.index for candidate in decision.candidates}) == len(decision.candidates)
    assert len(set(decision.tunnels)) == len(decision.tunnels)
    assert str(decision)


@given(networks(), targets, preferences, pins)
def test_the_same_network_gives_the_same_decision(made: Network, target: Target, wishes: Preferences, pin: str | None) -> None:
    again = dataclasses.replace(
        made,
        interfaces=dict(sorted(made.interfaces.items(), reverse=True)),
        defaults=dict(sorted(made.defaults.items(), reverse=True)),
    )
    assert decide(again, target, wishes, interface=pin) == decide(made, target, wishes, interface=pin)


@given(networks(), targets, preferences, pins)
def test_answers_alone_lead_to_the_decision_that_tables_lead_to(
    made: Network, target: Target, wishes: Preferences, pin: str | None
) -> None:
    asked = dataclasses.replace(made, routes=())
    decision = decide(asked, target, wishes, interface=pin, lookups=TableAnswers(made))
    assert decision == decide(made, target, wishes, interface=pin)


@given(networks(), st.lists(targets, max_size=8), preferences, pins)
def test_what_was_asked_before_does_not_matter(made: Network, asked: list[Target], wishes: Preferences, pin: str | None) -> None:
    decider = Decider(made, wishes, interface=pin)
    for target in (*asked, *asked):
        decision = decider.decide(target)
        assert decision == decide(made, target, wishes, interface=pin)
        assert decider.path(target) == path_of(decision)


@given(networks(sound=True), targets, preferences)
def test_never_a_tunnel_nor_a_dead_nor_an_unwanted_interface(made: Network, target: Target, wishes: Preferences) -> None:
    interface = decide(made, target, wishes).interface
    assume(interface is not None)
    assert interface is not None
    assert interface.kind not in (InterfaceKind.TUNNEL, InterfaceKind.LOOPBACK)
    assert interface.up
    assert interface.running
    assert decide(made, target, dataclasses.replace(wishes, exclude=[interface.name])).interface != interface
    if wishes.cost == "never":
        assert not is_expensive(interface, wishes)


@given(networks(sound=True), st.sampled_from(FAMILIES), preferences)
def test_what_has_no_destination_leaves_by_a_default_the_kernel_confirmed(
    made: Network, family: socket.AddressFamily, wishes: Preferences
) -> None:
    interface = decide(made, family, wishes).interface
    assume(interface is not None)
    assert interface is not None
    assert (interface.index, family) in made.reachable
    held = [a for a in interface.addresses if a.family == family and not a.tentative]
    assert held
    # No router forwards packets from a link-local IPv6 address.
    assert family == socket.AF_INET or any(a.usable for a in held)


@given(networks(), targets, preferences, st.sampled_from((*NAMES, "missing")))
def test_a_pin_always_wins(made: Network, target: Target, wishes: Preferences, pin: str) -> None:
    decision = decide(made, target, wishes, interface=pin)
    if decision.basis is Basis.LOCAL:
        assert decision.unbound
        return
    assert decision.basis is Basis.PINNED
    assert not decision.unbound
    assert decision.interface in (None, made.named(pin))
    pinned = made.named(pin)
    if pinned is not None and pinned.up and pinned.running and pinned.usable_addresses(decision.family):
        assert decision.interface == pinned


@given(networks(), addresses | st.ip_addresses(), preferences, pins)
def test_this_host_is_never_bound(made: Network, address: IPAddress, wishes: Preferences, pin: str | None) -> None:
    decider = Decider(made, wishes, interface=pin)
    decision = decider.decide(address)
    assert (decision.basis is Basis.LOCAL) == decider.is_local(address)
    if decider.is_local(address):
        assert decision.unbound
    for interface in made.interfaces.values():
        for own in interface.addresses:
            assert own.address.is_link_local or decider.is_local(own.address)


@given(networks(sound=True), targets, preferences, st.data())
def test_taking_a_refused_interface_away_changes_nothing(
    made: Network, target: Target, wishes: Preferences, data: st.DataObject
) -> None:
    """Exceptions: a tunnel's delegate and its routes count, an interface may be the last resort, and it owns its addresses."""
    before = decide(made, target, wishes)
    mute = [
        candidate.index
        for candidate in before.candidates
        if not candidate.taken
        and made.interfaces[candidate.index].kind is not InterfaceKind.TUNNEL
        and not made.interfaces[candidate.index].last_resort
    ]
    assume(mute)
    gone = data.draw(st.sampled_from(mute))
    rest = {index: interface for index, interface in made.interfaces.items() if index != gone}
    after = decide(tabulated(rest, made.routes), target, wishes)
    assert (after.interface, after.basis, after.unbound) == (before.interface, before.basis, before.unbound)


@given(networks(sound=True), addresses, preferences)
def test_a_tunnel_gets_only_what_is_its_own_and_only_if_asked_to(made: Network, address: IPAddress, wishes: Preferences) -> None:
    decision = decide(made, address, wishes)
    if decision.basis is not Basis.SPLIT_TUNNEL:
        return
    assert wishes.tunnels == "split"
    plain = unmapped(address)
    into = [
        route
        for route in made.routes
        if route.kind is RouteKind.UNICAST and not route.is_default and not route.scoped and plain in route.destination
    ]
    carriers = {interface.name for route in into for index, interface in made.interfaces.items() if index == route.interface}
    assert decision.candidates[0].interface in carriers


HALF_ELSEWHERE = tabulated(
    {2: Interface("en1", 2, InterfaceKind.WIRED, up=True, running=True, addresses=(InterfaceAddress(OWN[2][0], 24),))},
    [Route(ipaddress.ip_network("0.0.0.0/1"), 2, table=52)],
)
"""An uplink whose only route covers half of all addresses, and is in a table to which perhaps no policy rule leads."""


@given(networks(sound=True), addresses, preferences)
@example(HALF_ELSEWHERE, ADDRESSES[0], Preferences())
def test_no_longer_prefix_of_a_fit_interface_is_passed_over(made: Network, address: IPAddress, wishes: Preferences) -> None:
    """The same rule, written naively: no longer matching route leads to another usable interface."""
    plain = unmapped(address)
    decision = decide(made, address, wishes)
    assume(decision.basis in (Basis.LONGEST_PREFIX, Basis.DEFAULT_ROUTE, Basis.DELEGATE, Basis.SCOPED_DEFAULT, Basis.NONE))
    if plain.is_multicast or plain.is_link_local:
        return
    fit = {
        index
        for index, i in made.interfaces.items()
        if i.up
        and i.running
        and i.kind not in (InterfaceKind.TUNNEL, InterfaceKind.LOOPBACK)
        and not i.last_resort
        and i.usable_addresses(decision.family)
        and decide(tabulated({index: i}, [Route(d, index) for d in DEFAULTS]), decision.family, wishes).interface is not None
    }
    counting = [
        route
        for route in made.routes
        if route.interface in fit
        and route.kind is RouteKind.UNICAST
        and not route.is_default
        and route.table in (254, 253)
        and plain.version == route.destination.version
        and plain in route.destination
    ]
    unscoped = [route for route in counting if not route.scoped] or counting
    if not unscoped:
        ppp = decision.interface is not None and decision.interface.last_resort
        assert decision.basis is not Basis.LONGEST_PREFIX or ppp
        return
    longest = max(route.destination.prefixlen for route in unscoped)
    best = {route.interface for route in unscoped if route.destination.prefixlen == longest}
    if decision.interface is None or not decision.interface.last_resort:
        assert decision.basis is Basis.LONGEST_PREFIX
        assert decision.interface is not None
        assert decision.interface.index in best


@given(st.lists(st.integers(0, 255).flatmap(lambda n: st.builds(_network, st.just(n), st.integers(1, 8))), max_size=40))
@example([ipaddress.ip_network("0.0.0.0/1")])
@example([ipaddress.ip_network(prefix) for prefix in ("0.0.0.0/2", "64.0.0.0/3", "96.0.0.0/4", "224.0.0.0/4")])
@example([ipaddress.ip_network("0.0.0.0/2"), ipaddress.ip_network("0.0.0.0/2"), ipaddress.ip_network("32.0.0.0/3")])
def test_what_covers_half_is_a_default_in_disguise(prefixes: list[ipaddress.IPv4Network]) -> None:
    unicast = [prefix for prefix in prefixes if not prefix.is_multicast]
    covered = {
        first for prefix in unicast for first in range(int(prefix[0]) >> 24, (int(prefix[-1]) >> 24) + 1)
    }  # in units of /8
    assert is_default_in_disguise(prefixes, 4) == (len(covered) >= 128)


def _network(first: int, length: int) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network((first << 24, length), strict=False)


def test_ipv6_defaults_in_disguise() -> None:
    def covers(*prefixes: str) -> bool:
        return is_default_in_disguise(map(ipaddress.ip_network, prefixes), 6)

    assert covers("2000::/3")
    assert covers("2000::/4")
    assert covers("::/1")
    assert covers("::/1", "8000::/1")
    assert covers("2000::/5", "2800::/5")
    assert not covers("2000::/5", "2000::/5")
    assert not covers("fc00::/7", "2001:db8::/32", "fe80::/10", "ff00::/8")
    assert not covers()


@settings(max_examples=50)
@given(st.lists(st.tuples(st.ip_addresses(v=4), st.integers(1, 32)), max_size=20), st.ip_addresses(v=4))
def test_the_table_finds_the_prefixes_that_contain_an_address(
    given_prefixes: list[tuple[ipaddress.IPv4Address, int]], address: ipaddress.IPv4Address
) -> None:
    table: PrefixTable[Any] = PrefixTable(4)
    prefixes = [ipaddress.ip_network((base, length), strict=False) for base, length in given_prefixes]
    prefixes += [ipaddress.ip_network((address, length), strict=False) for _, length in given_prefixes[::2]]
    for prefix in prefixes:
        table.add(prefix, prefix)
    found = [prefix for same in table.matching(address) for prefix in same]
    assert sorted(found) == sorted(prefix for prefix in prefixes if address in prefix)
    assert [prefix.prefixlen for prefix in found] == sorted((prefix.prefixlen for prefix in found), reverse=True)


def test_a_hundred_thousand_routes_of_a_tunnel_are_no_default() -> None:
    base = network("eth0 wired 10.2.0.2/24\nwg0 tunnel 10.66.0.2/24", "default via 10.2.0.1 dev eth0")
    many = tuple(Route(ipaddress.IPv4Network((0x0B000000 + (number << 8), 24)), 2) for number in range(100_000))
    decider = Decider(dataclasses.replace(base, routes=base.routes + many))
    decision = decider.decide(ipaddress.ip_address("11.0.7.7"))
    assert (decision.interface, decision.tunnels) == (base.interfaces[1], ("wg0",))
    assert decider.decide(socket.AF_INET).tunnels == ()
