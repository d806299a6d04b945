"""Recorded states of Apple's network stack are read correctly and lead to the right interface."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from bindsock.kernel.darwin import DarwinKernel, abi
from bindsock.kernel.darwin.routes import parse_routes
from bindsock.model.decision import Basis, path_of
from bindsock.model.network import InterfaceKind
from bindsock.routing.effective import Preferences, decide
from tests.darwin.golden import Replay, State, all_states, dump, golden, states, transitions
from tests.darwin.topology import from_state

if TYPE_CHECKING:
    from bindsock.model.decision import Decision
    from bindsock.model.network import Network

FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}

NAMED = dict(all_states())


def read(name: str) -> Network:
    return DarwinKernel(Replay(NAMED[name])).network()


def check(state: State, network: Network) -> None:
    """Check that the decisions are the interfaces that the recording names."""
    for name, family in FAMILIES.items():
        expected = state["expected"][name]
        decision = decide(network, family)
        assert chosen(decision) in (expected["effective"], *expected.get("acceptable", ())), decision
        if decision.interface is not None:
            assert decision.interface.index == expected["effective_index"]


def chosen(decision: Decision) -> str | None:
    return decision.interface.name if decision.interface is not None else None


@pytest.mark.parametrize("name", NAMED)
def test_the_effective_interface_is_the_expected_one(name: str) -> None:
    check(NAMED[name], read(name))


@pytest.mark.parametrize("name", NAMED)
def test_the_tunnels_that_were_looked_through_are_named(name: str) -> None:
    network = read(name)
    for expected, family in FAMILIES.items():
        assert list(decide(network, family).tunnels) == NAMED[name]["expected"][expected]["tunnels"]


@pytest.mark.parametrize("name", NAMED)
def test_without_the_right_to_dump_routes_the_kernel_is_asked_for_the_defaults(name: str) -> None:
    check(NAMED[name], DarwinKernel(Replay(NAMED[name], dumps=False)).network())


@pytest.mark.parametrize("state", states(), ids=lambda state: state["name"])
def test_a_kernel_without_the_silent_question_is_asked_aloud(state: State) -> None:
    check(state, DarwinKernel(Replay(state, dumps=False, silent=False)).network())


def test_destinations_follow_their_own_routes() -> None:
    network = read("split_tunnel_and_vm_bridge")
    routed = NAMED["split_tunnel_and_vm_bridge"]["expected"]["by_route"]
    assert routed["10.1.2.3"] == "utun2"
    into_the_tunnel = decide(network, ip_address("10.1.2.3"), Preferences(tunnels="split"))
    assert (into_the_tunnel.basis, into_the_tunnel.unbound) == (Basis.SPLIT_TUNNEL, True)
    assert chosen(decide(network, ip_address("10.1.2.3"))) == "en0"
    for destination, interface in routed.items():
        if interface != "utun2":
            assert chosen(decide(network, ip_address(destination))) == interface


@pytest.mark.parametrize("state", states(), ids=lambda state: state["name"])
def test_both_forms_of_the_dump_tell_the_same(state: State) -> None:
    old, new = dump(state, "NET_RT_DUMP"), dump(state, "NET_RT_DUMP2")
    assert old is not None
    assert new is not None
    assert parse_routes(old) == parse_routes(new)


@pytest.mark.parametrize("state", states(), ids=lambda state: state["name"])
def test_interfaces_are_read_as_the_recorder_saw_them(state: State) -> None:
    network = DarwinKernel(Replay(state)).network()
    assert list(network.interfaces) == [recorded["index"] for recorded in state["interfaces"]]
    for recorded in state["interfaces"]:
        interface = network.interfaces[recorded["index"]]
        flags = int(recorded["flags"], 16)
        assert (interface.name, interface.mtu) == (recorded["name"], recorded["mtu"])
        assert (interface.up, interface.running) == (bool(flags & abi.IFF_UP), bool(flags & abi.IFF_RUNNING))
        assert (interface.delegate or 0) == recorded["delegate"]
        assert len(interface.addresses) == len(recorded["addresses"])
        # The kernel embeds the interface's index in a link-local address.
        kept = [a.replace(f"fe80:{interface.index:x}::", "fe80::") for a in recorded["addresses"]]
        assert [str(a.address) for a in interface.addresses] == [str(ip_address(a)) for a in kept]


def test_kinds_are_told_by_the_system_and_not_by_the_name() -> None:
    kinds = {i.name: i.kind for name in NAMED for i in read(name).interfaces.values()}
    assert kinds["lo0"] is InterfaceKind.LOOPBACK
    assert kinds["en0"] is InterfaceKind.WIFI
    assert kinds["en5"] is InterfaceKind.WIRED
    assert kinds["pdp_ip0"] is InterfaceKind.CELLULAR
    assert {kinds[name] for name in kinds if name.startswith(("utun", "stf"))} == {InterfaceKind.TUNNEL}
    assert kinds["awdl0"] is kinds["llw0"] is InterfaceKind.OTHER


def test_link_local_scopes_do_not_stay_in_addresses_and_gateways() -> None:
    network = read("wifi_vpn_exit")
    gateways = {route.gateway for route in network.routes if route.is_default and route.gateway is not None}
    assert gateways == {ip_address("192.168.1.1"), ip_address("fe80::1")}
    assert all(
        route.destination.network_address.packed[2:4] == b"\0\0" for route in network.routes if route.destination.is_link_local
    )


def test_neighbours_and_what_packets_left_behind_are_no_routes() -> None:
    # 192.168.1.1 is there twice: cloned, with its link-level address, and as configd's own route to the gateway.
    network = read("wifi_vpn_exit")
    routes = [route for route in network.routes if route.destination.prefixlen in (32, 128)]
    assert len([r for r in routes if str(r.destination) == "192.168.1.1/32"]) == 1
    assert not [r for r in routes if r.destination.version == 6]


def test_scoped_and_unscoped_defaults_are_told_apart() -> None:
    network = read("wifi_vpn_exit")
    defaults = {
        (r.family, network.interfaces[r.interface].name, r.scoped) for r in network.routes if r.is_default and r.interface
    }
    assert defaults == {(family, *rest) for family in FAMILIES.values() for rest in (("utun0", False), ("en0", True))}


@pytest.mark.parametrize("name", ["harmless_changes", "noise"])
def test_what_must_not_disturb_leaves_the_paths_as_they_are(name: str) -> None:
    transition = next(t for t in transitions() if t["name"] == name)
    before = DarwinKernel(Replay(transition["before"])).network()
    after = DarwinKernel(Replay(transition["after"])).network()
    for family in FAMILIES.values():
        assert path_of(decide(before, family)) == path_of(decide(after, family))


@pytest.mark.parametrize("name", NAMED)
def test_the_simulated_kernel_in_a_recorded_state_reads_the_same(name: str) -> None:
    assert from_state(NAMED[name]).kernel().network() == read(name)


def test_private_constants_are_those_of_the_recordings() -> None:
    recorded = {name: int(code, 16) for name, code in golden()["constants"]["ioctl"].items()}
    recorded |= golden()["constants"]["rtm_type"]
    for name in abi.PRIVATE:
        if name in recorded:
            assert getattr(abi, name) == recorded[name]
    assert recorded["SIOCSKEVFILT"] == abi.SIOCSKEVFILT
    for state in states():
        for interface in state["interfaces"]:
            reply = bytes.fromhex(state["ioctl"][interface["name"]]["replies"]["SIOCGIFTYPE"][1])
            answer = abi.ifreq.from_buffer_copy(reply).ifr_ifru
            assert list(answer.ifr_type) == [interface["ift_type"], interface["family"], interface["subfamily"]]
