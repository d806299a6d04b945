"""The plan of a repair, as a table: networks, existing repairs and known gateways."""

from __future__ import annotations

import dataclasses
import ipaddress
import socket

import pytest

from bindsock.errors import UnsupportedSystem
from bindsock.model.network import Interface, Lookup, Network, Route
from bindsock.model.policy import Gateway, Repair
from bindsock.model.preferences import Preferences
from bindsock.repair import Impossible, Plan, Repairer, plan
from bindsock.testing import SimulatedKernel, interface, network

V4, V6 = socket.AF_INET, socket.AF_INET6
WIFI = interface("2: wifi0 wifi 10.1.0.2/24")
ETH = interface("3: eth0 wired 10.2.0.2/24")
TUN = interface("4: tun0 tunnel 10.66.0.2/24")
TAKEN = "default dev tun0"
ONLY_VPN = network(WIFI, ETH, TUN, TAKEN)
ETH_HAS_ITS_OWN = network(WIFI, ETH, TUN, "default dev tun0 metric 50", "default via 10.2.0.1 dev eth0 metric 700")
ADDRESSES = {2: "10.1.0.1", 3: "10.2.0.1"}


def gateway(index: int) -> Gateway:
    return Gateway(ipaddress.ip_address(ADDRESSES[index]), "the test")


def known(interface: Interface, family: socket.AddressFamily) -> Gateway | None:
    return gateway(interface.index)


def unknown(interface: Interface, family: socket.AddressFamily) -> Gateway | None:
    return None


def repair(index: int, name: str, address: str | None = None) -> Repair:
    return Repair(V4, name, index, Gateway(ipaddress.ip_address(address), "the repair") if address else gateway(index))


WIFI_REPAIR, ETH_REPAIR = repair(2, "wifi0"), repair(3, "eth0")


@pytest.mark.parametrize(
    ("seen", "existing", "expected"),
    [
        pytest.param(ONLY_VPN, [], Plan(make=(WIFI_REPAIR, ETH_REPAIR)), id="both lack one"),
        pytest.param(ONLY_VPN, [WIFI_REPAIR], Plan(make=(ETH_REPAIR,)), id="one stands"),
        pytest.param(ONLY_VPN, [WIFI_REPAIR, ETH_REPAIR], Plan(), id="both stand"),
        pytest.param(network(WIFI, ETH, TUN), [WIFI_REPAIR], Plan(remove=(WIFI_REPAIR,)), id="the VPN is gone"),
        pytest.param(network(WIFI, ETH, TUN), [], Plan(), id="no VPN"),
        pytest.param(
            ETH_HAS_ITS_OWN,
            [WIFI_REPAIR, ETH_REPAIR],
            Plan(remove=(ETH_REPAIR,)),
            id="an uplink has its own",
        ),
        pytest.param(ETH_HAS_ITS_OWN, [], Plan(), id="one has its own, so none is made"),
        pytest.param(ETH_HAS_ITS_OWN, [WIFI_REPAIR], Plan(), id="one was made while another has its own"),
        pytest.param(
            ETH_HAS_ITS_OWN,
            [repair(2, "wifi0", "10.7.0.1")],
            Plan(remove=(repair(2, "wifi0", "10.7.0.1"),), make=(WIFI_REPAIR,)),
            id="another gateway while another uplink has its own",
        ),
        pytest.param(
            network(ETH, TUN, TAKEN), [WIFI_REPAIR, ETH_REPAIR], Plan(remove=(WIFI_REPAIR,)), id="the interface is gone"
        ),
        pytest.param(
            ONLY_VPN,
            [repair(2, "wifi0", "10.7.0.1"), ETH_REPAIR],
            Plan(remove=(repair(2, "wifi0", "10.7.0.1"),), make=(WIFI_REPAIR,)),
            id="another gateway",
        ),
        pytest.param(
            ONLY_VPN, [repair(2, "wlan0"), ETH_REPAIR], Plan(remove=(repair(2, "wlan0"),), make=(WIFI_REPAIR,)), id="renamed"
        ),
    ],
)
def test_what_is_planned(seen: Network, existing: list[Repair], expected: Plan) -> None:
    assert plan(seen, Preferences(), existing, known) == expected


def test_a_default_in_the_table_of_a_repair_is_not_the_uplinks_own() -> None:
    through = Route(ipaddress.ip_network("0.0.0.0/0"), 2, ipaddress.ip_address("10.1.0.1"), table=WIFI_REPAIR.table)
    seen = Network(ONLY_VPN.interfaces, (), {(2, V4): Lookup(through)}, ONLY_VPN.unbound)
    assert plan(seen, Preferences(), [WIFI_REPAIR, ETH_REPAIR], known) == Plan()


def test_what_the_preferences_exclude_is_not_repaired_and_not_taken_from_who_has_it() -> None:
    preferences = Preferences(exclude=["eth*"])
    assert plan(ONLY_VPN, preferences, [], known) == Plan(make=(WIFI_REPAIR,))
    assert plan(ONLY_VPN, preferences, [ETH_REPAIR], known) == Plan(make=(WIFI_REPAIR,))
    assert plan(ONLY_VPN, Preferences(include=["eth0"]), [], known) == Plan(make=(ETH_REPAIR,))


def test_where_nothing_names_the_gateway_it_is_said() -> None:
    planned = plan(ONLY_VPN, Preferences(), [], unknown)
    assert planned == Plan(impossible=(Impossible(V4, "wifi0"), Impossible(V4, "eth0")))
    assert str(planned.impossible[0]).startswith("the IPv4 gateway of wifi0 is unknown")


def test_a_repair_that_stands_stays_where_nothing_names_the_gateway_any_more() -> None:
    assert plan(ONLY_VPN, Preferences(), [WIFI_REPAIR, ETH_REPAIR], unknown) == Plan()


@pytest.mark.parametrize("down", ["down", "no-carrier"])
def test_an_interface_that_carries_nothing_is_not_repaired(down: str) -> None:
    seen = network(f"2: wifi0 wifi 10.1.0.2/24 {down}", ETH, TUN, TAKEN)
    assert plan(seen, Preferences(), [WIFI_REPAIR], known) == Plan(remove=(WIFI_REPAIR,), make=(ETH_REPAIR,))


def test_the_commands_of_a_repair_name_its_table_and_quote_its_name() -> None:
    odd = Repair(V4, "a;b", 7, Gateway(ipaddress.ip_address("fe80::1"), "a test"))
    assert odd.commands() == [
        "ip route add default via inet6 fe80::1 dev 'a;b' table 3036676103",
        "ip rule add pref 98 oif 'a;b' lookup main suppress_prefixlength 0",
        "ip rule add pref 99 oif 'a;b' lookup 3036676103",
    ]


def test_a_system_without_rules_refuses_to_repair() -> None:
    with pytest.raises(UnsupportedSystem, match="repair_routes needs Linux"):
        Repairer(SimulatedKernel(ONLY_VPN), Preferences())


@pytest.mark.parametrize(
    ("seen", "existing", "only", "expected"),
    [
        pytest.param(ONLY_VPN, [], "eth0", Plan(make=(ETH_REPAIR,)), id="an uplink"),
        pytest.param(ONLY_VPN, [], "cable", Plan(make=(ETH_REPAIR,)), id="by its alternative name"),
        pytest.param(ONLY_VPN, [], "tun0", Plan(), id="a tunnel"),
        pytest.param(ONLY_VPN, [], "nope", Plan(), id="no interface"),
        pytest.param(ETH_HAS_ITS_OWN, [], "wifi0", Plan(make=(WIFI_REPAIR,)), id="another has its own"),
        pytest.param(ONLY_VPN, [repair(2, "wifi0", "10.7.0.1")], "eth0", Plan(make=(ETH_REPAIR,)), id="another's repair"),
        pytest.param(
            network(WIFI, ETH, TUN), [WIFI_REPAIR, ETH_REPAIR], "eth0", Plan(remove=(ETH_REPAIR,)), id="the VPN is gone"
        ),
    ],
)
def test_the_only_interface_to_use_is_the_only_one_that_is_repaired(
    seen: Network, existing: list[Repair], only: str, expected: Plan
) -> None:
    cable = dataclasses.replace(seen.interfaces[3], alternative_names=("cable",))
    seen = dataclasses.replace(seen, interfaces={**seen.interfaces, 3: cable})
    assert plan(seen, Preferences(), existing, known, interface=only) == expected


def test_only_the_families_that_are_asked_for_are_repaired() -> None:
    assert plan(ONLY_VPN, Preferences(), [], known, families=[V6]) == Plan()
    assert plan(ONLY_VPN, Preferences(), [], known, families=[V4]) == Plan(make=(WIFI_REPAIR, ETH_REPAIR))
