"""The whole Darwin backend on the simulated kernel: situations without a recording, and the limits of a sandbox."""

from __future__ import annotations

import socket
import time
from ipaddress import ip_address

import pytest

from bindsock.errors import KernelError
from bindsock.kernel.darwin import DarwinKernel, abi
from bindsock.kernel.darwin.events import RouteEvents
from bindsock.model.decision import Basis, path_of
from bindsock.model.network import InterfaceKind
from bindsock.routing.effective import Preferences, decide
from bindsock.testing.darwin import Hardware, SimulatedDarwin
from tests.darwin.golden import darwin_error
from tests.darwin.machines import two_uplinks

FAMILIES = (socket.AF_INET, socket.AF_INET6)


def effective(machine: SimulatedDarwin, family: socket.AddressFamily = socket.AF_INET) -> str | None:
    found = decide(machine.kernel().network(), family).interface
    return None if found is None else found.name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_delegate_beneath_a_vpn_is_found_and_followed(family: socket.AddressFamily) -> None:
    machine = two_uplinks()
    machine.vpn_up("utun3", "en0", ipv6="fd00:8::2/64")
    decision = decide(machine.kernel().network(), family)
    assert (str(decision.interface), decision.basis, decision.tunnels) == ("en0", Basis.DELEGATE, ("utun3",))
    machine.set_delegate("utun3", "en5")
    assert effective(machine, family) == "en5"


def test_a_chain_of_delegates_is_followed_to_its_end() -> None:
    machine = two_uplinks()
    machine.vpn_up("utun0", "en5")
    machine.vpn_up("utun1", "utun0", ipv4="10.9.0.2/32")
    machine.vpn_up("ipsec0", "utun1", ipv4="10.10.0.2/32")
    decision = decide(machine.kernel().network(), socket.AF_INET)
    assert (str(decision.interface), decision.tunnels) == ("en5", ("ipsec0", "utun1", "utun0"))


def test_a_delegate_that_is_down_is_not_believed() -> None:
    machine = two_uplinks()
    machine.vpn_up("utun0", "en0")
    machine.set_up("en0", False)
    decision = decide(machine.kernel().network(), socket.AF_INET)
    assert str(decision.interface) == "en5"
    assert any("en0" in note for note in decision.notes)


def test_a_delegate_that_was_unplugged_is_not_believed() -> None:
    machine = two_uplinks()
    machine.vpn_up("utun0", "en0")
    index = machine.state.named("en0").index
    machine.remove_interface("en0")
    network = machine.kernel().network()
    assert network.interfaces[machine.state.named("utun0").index].delegate == index
    assert str(decide(network, socket.AF_INET).interface) == "en5"


def test_a_tunnel_without_a_delegate_and_without_an_uplink_leads_nowhere() -> None:
    machine = SimulatedDarwin()
    machine.vpn_up("utun0")
    assert effective(machine) is None


def test_halves_of_the_address_space_on_a_tunnel_do_not_hide_the_default() -> None:
    machine = two_uplinks()
    machine.add_interface("utun4", "tunnel")
    machine.add_address("utun4", "10.9.0.2/32")
    for half in ("0.0.0.0/1", "128.0.0.0/1"):
        machine.add_route(half, "utun4")
    decision = decide(machine.kernel().network(), socket.AF_INET)
    assert (str(decision.interface), decision.tunnels) == ("en0", ("utun4",))


def test_a_ppp_vpn_is_looked_through_and_a_lone_ppp_uplink_is_used() -> None:
    machine = SimulatedDarwin()
    machine.add_uplink("ppp0", "ppp", ipv4="100.64.0.7/32")
    decision = decide(machine.kernel().network(), socket.AF_INET)
    assert (str(decision.interface), decision.tunnels) == ("ppp0", ())
    machine.add_uplink("en0", "wifi", ipv4="192.168.1.23/24", gateway="192.168.1.1")
    decision = decide(machine.kernel().network(), socket.AF_INET)
    assert (str(decision.interface), decision.tunnels) == ("en0", ("ppp0",))


@pytest.mark.parametrize(
    ("name", "hardware"),
    [
        ("feth0", "wired"),
        ("gif0", Hardware(abi.IFRTYPE_FAMILY_GIF, 0, 55, 0x8010)),
        ("utun9", "tunnel"),
        ("ipsec0", Hardware(abi.IFRTYPE_FAMILY_IPSEC, 0, abi.IFT_OTHER, 0x8010)),
        ("rd0", Hardware(abi.IFRTYPE_FAMILY_ETHERNET, abi.IFRTYPE_SUBFAMILY_REDIRECT, abi.IFT_ETHER, 0x8822)),
        ("tap0", "wired"),
        ("tun3", Hardware(abi.IFRTYPE_FAMILY_TUN, 0, abi.IFT_OTHER, 0x8010)),
    ],
)
def test_tunnels_of_all_kinds_are_never_the_answer(name: str, hardware: str | Hardware) -> None:
    machine = SimulatedDarwin()
    machine.add_uplink(name, hardware, ipv4="10.0.0.2/24", gateway="10.0.0.1")
    network = machine.kernel().network()
    found = network.named(name)
    assert found is not None
    assert found.kind is InterfaceKind.TUNNEL
    assert decide(network, socket.AF_INET).interface is None


def test_what_macos_15_marks_as_a_vpn_is_a_tunnel_whatever_its_name() -> None:
    machine = SimulatedDarwin()
    machine.add_uplink("en9", "wired", ipv4="10.0.0.2/24", gateway="10.0.0.1")
    assert effective(machine) == "en9"
    machine.state.named("en9").vpn = True
    assert effective(machine) is None
    machine.knows_vpn = False
    assert effective(machine) == "en9"


@pytest.mark.parametrize("name", ["awdl0", "llw0", "ap1", "anpi0"])
def test_links_to_devices_nearby_are_never_uplinks(name: str) -> None:
    machine = SimulatedDarwin()
    machine.add_uplink(name, "wifi", ipv4="169.254.7.7/16", gateway="169.254.0.1")
    machine.add_address(name, "10.0.0.2/24")
    assert effective(machine) is None
    found = machine.kernel().network().named(name)
    assert found is not None
    assert found.kind is not InterfaceKind.TUNNEL


def test_names_that_only_begin_like_a_tunnels_are_none() -> None:
    machine = SimulatedDarwin()
    machine.add_uplink("apple0", "wired", ipv4="10.0.0.2/24", gateway="10.0.0.1")
    assert effective(machine) == "apple0"


def test_an_address_that_is_still_being_probed_is_not_used() -> None:
    machine = SimulatedDarwin()
    machine.add_interface("en0", "wifi")
    machine.add_address("en0", "fe80::a/64")
    machine.add_address("en0", "2001:db8::a/64", tentative=True)
    machine.advertise_router("en0", "fe80::1")
    assert effective(machine, socket.AF_INET6) is None
    machine.finish_duplicate_detection("en0")
    assert effective(machine, socket.AF_INET6) == "en0"


def test_cellular_is_expensive_and_needs_no_gateway() -> None:
    machine = SimulatedDarwin()
    machine.add_uplink("pdp_ip0", "cellular", ipv4="10.45.3.7/32")
    machine.vpn_up("utun0")
    assert effective(machine) == "pdp_ip0"
    assert decide(machine.kernel().network(), socket.AF_INET, Preferences(cost="never")).interface is None


def test_a_renumbering_keeps_the_interface_and_changes_the_path() -> None:
    machine = two_uplinks()
    kernel = machine.kernel()
    before = path_of(decide(kernel.network(), socket.AF_INET))
    machine.remove_address("en0", "192.168.1.23")
    machine.add_address("en0", "192.168.1.77/24")
    after = path_of(decide(kernel.network(), socket.AF_INET))
    assert before is not None
    assert after is not None
    assert before.interface == after.interface == "en0"
    assert before != after


@pytest.mark.parametrize("destination", ["8.8.8.8", "2001:4860:4860::8888"])
def test_has_route_is_what_a_bound_socket_would_find(destination: str) -> None:
    machine = two_uplinks()
    machine.add_interface("en9", "wired")
    machine.vpn_up("utun0", "en0", ipv6="fd00:8::2/64")
    kernel = machine.kernel()
    network = kernel.network()
    reached = {i.name for i in network.interfaces.values() if kernel.has_route(i, ip_address(destination))}
    assert reached == {"en0", "en5", "utun0"}


def test_has_route_asks_without_waking_other_listeners() -> None:
    machine = two_uplinks()
    listener = machine.route_socket()
    kernel = machine.kernel()
    en0 = kernel.network().interfaces[machine.state.named("en0").index]
    assert kernel.has_route(en0, ip_address("8.8.8.8"))
    assert not listener.queue
    listener.close()


def test_has_route_is_told_by_the_table_where_a_sandbox_forbids_to_ask() -> None:
    machine = two_uplinks()
    machine.add_interface("en9", "wired")
    machine.denied.add("route")
    kernel = machine.kernel()
    interfaces = kernel.network().interfaces.values()
    assert {i.name for i in interfaces if kernel.has_route(i, ip_address("8.8.8.8"))} == {"en0", "en5"}


def test_a_neighbour_that_does_not_answer_is_still_reached_by_its_link() -> None:
    machine = two_uplinks()
    en0 = machine.kernel().network().interfaces[machine.state.named("en0").index]
    route = next(r for r in machine.state.routes if str(r.destination) == "192.168.1.0/24")
    route.flags |= abi.RTF_REJECT
    assert not machine.kernel().has_route(en0, ip_address("192.168.1.9"))
    route.flags |= abi.RTF_LLINFO
    assert machine.kernel().has_route(en0, ip_address("192.168.1.9"))


def test_link_local_destinations_have_a_route_by_each_link() -> None:
    machine = two_uplinks()
    kernel = machine.kernel()
    network = kernel.network()
    for name in ("en0", "en5"):
        found = network.named(name)
        assert found is not None
        assert kernel.has_route(found, ip_address("fe80::1"))


def test_without_routes_and_without_questions_the_reading_fails() -> None:
    machine = two_uplinks()
    machine.denied |= {"dump", "route"}
    with pytest.raises(OSError, match="EPERM"):
        machine.kernel().network()


def test_an_ioctl_that_a_sandbox_denies_is_not_fatal() -> None:
    class Sandboxed(SimulatedDarwin):
        def ioctl(self, request: int, argument: bytes, /) -> bytes:
            raise darwin_error(abi.EPERM)

    machine = Sandboxed()
    machine.add_uplink("en0", "wifi", ipv4="192.168.1.23/24", gateway="192.168.1.1")
    machine.vpn_up("utun0", "en0")
    network = DarwinKernel(machine).network()
    found = network.named("utun0")
    assert found is not None
    assert (found.kind, found.delegate) == (InterfaceKind.TUNNEL, None)
    assert str(decide(network, socket.AF_INET).interface) == "en0"


def test_a_driver_that_accepts_what_it_does_not_know_makes_no_address_tentative() -> None:
    class Careless(SimulatedDarwin):
        def ioctl(self, request: int, argument: bytes, /) -> bytes:
            return argument if request == abi.SIOCGIFAFLAG_IN6 else super().ioctl(request, argument)

    machine = Careless()
    machine.add_uplink("en0", "wifi", ipv6="2001:db8::a/64", router="fe80::1")
    assert effective(machine, socket.AF_INET6) == "en0"


def test_a_machine_out_of_descriptors_is_no_machine_without_delegates() -> None:
    class Exhausted(SimulatedDarwin):
        def ioctl(self, request: int, argument: bytes, /) -> bytes:
            raise OSError(24, "too many open files")

    with pytest.raises(OSError, match="too many"):
        DarwinKernel(Exhausted()).network()


def test_a_kernel_that_answers_nonsense_raises_the_typed_error() -> None:
    class Broken(SimulatedDarwin):
        def sysctl(self, mib: object, /) -> bytes:
            return b"\x02\0\x05\x14"

    with pytest.raises(KernelError):
        DarwinKernel(Broken()).network()


def test_interfaces_without_a_name_in_the_dump_have_that_of_the_list() -> None:
    class Renamed(SimulatedDarwin):
        def interfaces(self) -> list[tuple[int, str]]:
            return [(index, "stf0" if name == "stf0" else f"{name}x") for index, name in super().interfaces()]

    assert [i.name for i in DarwinKernel(Renamed()).network().interfaces.values()] == ["lo0x", "stf0"]


def test_the_cure_names_the_interface_and_the_family() -> None:
    machine = two_uplinks()
    kernel = machine.kernel()
    en0 = kernel.network().interfaces[machine.state.named("en0").index]
    assert "route -n add -ifscope en0 default" in kernel.route_hint(en0, ip_address("8.8.8.8"))
    assert "-inet6 -ifscope en0" in kernel.route_hint(en0, ip_address("2001:db8::1"))


def test_suspended_is_the_difference_of_darwins_two_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {8: 100.0, time.CLOCK_MONOTONIC_RAW: 130.0}
    monkeypatch.setattr(time, "CLOCK_UPTIME_RAW", 8, raising=False)
    monkeypatch.setattr(time, "clock_gettime", clocks.__getitem__)
    assert DarwinKernel(SimulatedDarwin()).suspended() == 30.0


def test_events_of_a_changed_delegate_come_by_the_second_source_alone() -> None:
    machine = two_uplinks()
    machine.vpn_up("utun0", "en0")
    route, events = machine.kernel().events()
    assert isinstance(route, RouteEvents)
    machine.set_delegate("utun0", "en5")
    assert (route.drain(), events.drain()) == (False, True)
    machine.make_primary("en5")
    assert (route.drain(), events.drain()) == (True, False)
    route.close()
    events.close()


def test_a_question_of_our_own_is_no_event() -> None:
    machine = two_uplinks()
    kernel = machine.kernel()
    sources = kernel.events()
    en0 = kernel.network().interfaces[machine.state.named("en0").index]
    kernel.has_route(en0, ip_address("8.8.8.8"))
    machine.inject(bytes(20))
    assert [source.drain() for source in sources] == [False, False]
    for source in sources:
        source.close()
