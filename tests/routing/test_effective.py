from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from bindsock.model.decision import Basis, Decision, path_of
from bindsock.model.network import Interface, InterfaceKind, Lookup, Network, Route, Target
from bindsock.routing.effective import Decider, Preferences, decide, is_expensive
from bindsock.testing import network

if TYPE_CHECKING:
    from collections.abc import Mapping

V4 = socket.AF_INET
V6 = socket.AF_INET6
ANYWHERE = "203.0.113.9"

TWO_UPLINKS = """
    lo    loopback 127.0.0.1/8 ::1/128
    wifi0 wifi     10.1.0.2/24 2001:db8:1::2/64 fe80::2/64
    eth0  wired    10.2.0.2/24 2001:db8:2::2/64 fe80::3/64
    tun0  tunnel   10.66.0.2/24 fd00:66::2/64
"""
TWO_DEFAULTS = """
    default via 10.1.0.1 dev wifi0 metric 600
    default via 10.2.0.1 dev eth0 metric 700
    10.1.0.0/24 dev wifi0 metric 600
    10.2.0.0/24 dev eth0 metric 700
    10.66.0.0/24 dev tun0
"""


@dataclass(frozen=True)
class Situation:
    """A network, a question, and the expected decision."""

    title: str
    network: Network
    interface: str | None
    basis: Basis
    target: Target | str = V4
    tunnels: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    """A part of the reason, for some of the candidates."""
    note: str = ""
    gateway: str | None = None
    preferences: Preferences = field(default_factory=Preferences)
    pin: str | None = None
    unbound: bool = False


def address(text: str) -> Any:
    return ipaddress.ip_address(text)


def interface_name(decision: Decision) -> str | None:
    return None if decision.interface is None else decision.interface.name


def reason(decision: Decision, name: str) -> str:
    return next(candidate.reason for candidate in decision.candidates if candidate.interface == name)


SING_TUN = ("1.0.0.0/8", "2.0.0.0/7", "4.0.0.0/6", "8.0.0.0/5", "16.0.0.0/4", "32.0.0.0/3", "64.0.0.0/2", "128.0.0.0/1")
EXPENSIVE_WIFI = Preferences(expensive=["wifi*"])

LINUX = [
    Situation(
        "no VPN: the default with the best metric",
        network(TWO_UPLINKS, TWO_DEFAULTS),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        gateway="10.1.0.1",
        reasons={
            "wifi0": "default route via 10.1.0.1, metric 600",
            "eth0": "usable (default route via 10.2.0.1, metric 700), but wifi0 has metric 600",
            "tun0": "is a tunnel",
            "lo": "is the loopback",
        },
    ),
    Situation(
        "NetworkManager's VPN: a tunnel has the default with the best metric",
        network(TWO_UPLINKS, "default dev tun0 metric 50\n" + TWO_DEFAULTS),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        tunnels=("tun0",),
        reasons={"tun0": "is a tunnel (default route)"},
    ),
    Situation(
        "the VPN took the only default there was",
        network(TWO_UPLINKS, "default dev tun0\n10.1.0.0/24 dev wifi0"),
        None,
        Basis.NONE,
        tunnels=("tun0",),
        reasons={"wifi0": "has no default route", "tun0": "is a tunnel (default route)"},
    ),
    Situation(
        "OpenVPN's 0/1 and 128/1",
        network(TWO_UPLINKS, TWO_DEFAULTS + "0.0.0.0/1 dev tun0\n128.0.0.0/1 dev tun0"),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        tunnels=("tun0",),
        reasons={"tun0": "is a tunnel (0.0.0.0/1: a default in disguise)"},
    ),
    Situation(
        "IPv6 2000::/3 into a tunnel",
        network(TWO_UPLINKS, "default6 via fe80::1 dev wifi0 metric 1024\n2000::/3 dev tun0"),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        V6,
        tunnels=("tun0",),
        reasons={"tun0": "2000::/3: a default in disguise"},
    ),
    Situation(
        "wg-quick: the tunnel's default is in table 51820",
        network(TWO_UPLINKS, TWO_DEFAULTS + "default dev tun0 table 51820"),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        tunnels=("tun0",),
        reasons={"tun0": "is a tunnel (default route in table 51820)"},
    ),
    Situation(
        "wg-quick with a kill switch: the kernel lets nobody past it",
        network(
            TWO_UPLINKS,
            TWO_DEFAULTS + "default dev tun0 table 51820\nunreachable default table 51820",
            unconfirmed=["wifi0", "eth0"],
        ),
        None,
        Basis.NONE,
        tunnels=("tun0",),
        reasons={
            "wifi0": "the kernel finds no default route by it for a bound socket",
            "eth0": "the kernel finds no default route by it for a bound socket",
        },
        note="table 51820 has the default route `unreachable default`",
    ),
    Situation(
        "Tailscale as exit node: table 52",
        network(TWO_UPLINKS, TWO_DEFAULTS + "default dev tun0 table 52\n100.64.0.7/32 dev tun0 table 52"),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        tunnels=("tun0",),
        reasons={"tun0": "default route in table 52"},
    ),
    Situation(
        "Tailscale without exit node is in nobody's way",
        network(TWO_UPLINKS, TWO_DEFAULTS + "100.64.0.7/32 dev tun0 table 52"),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        reasons={"tun0": "is a tunnel"},
    ),
    Situation(
        "a tunnel in the main table beneath one in another: the one that catches first comes first",
        network(
            TWO_UPLINKS + "wg0 tunnel 10.77.0.2/24", TWO_DEFAULTS + "default dev tun0 metric 50\ndefault dev wg0 table 51820"
        ),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        tunnels=("wg0", "tun0"),
    ),
    Situation(
        "a tunnel behind the uplink's metric is in nobody's way",
        network(TWO_UPLINKS, TWO_DEFAULTS + "default dev tun0 metric 5000"),
        "wifi0",
        Basis.DEFAULT_ROUTE,
    ),
    Situation(
        "a tunnel that is down catches nothing",
        network(TWO_UPLINKS.replace("10.66.0.2/24", "10.66.0.2/24 down"), "default dev tun0 metric 50\n" + TWO_DEFAULTS),
        "wifi0",
        Basis.DEFAULT_ROUTE,
    ),
    Situation(
        "a tunnel that is down hides nothing of the system's choice",
        network(TWO_UPLINKS.replace("10.66.0.2/24", "10.66.0.2/24 down"), "default dev tun0 metric 50\n" + TWO_DEFAULTS),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        preferences=EXPENSIVE_WIFI,
        note="it is the system's own choice",
    ),
    Situation(
        "a tunnel that is down catches nothing by halves, either",
        network(
            TWO_UPLINKS.replace("10.66.0.2/24", "10.66.0.2/24 down"), TWO_DEFAULTS + "0.0.0.0/1 dev tun0\n128.0.0.0/1 dev tun0"
        ),
        "wifi0",
        Basis.DEFAULT_ROUTE,
    ),
    Situation(
        "halves in another table come before halves in main",
        network(
            TWO_UPLINKS + "wg0 tunnel 10.77.0.2/24",
            TWO_DEFAULTS + "0.0.0.0/1 dev tun0\n128.0.0.0/1 dev tun0\n"
            "0.0.0.0/1 dev wg0 table 51820\n128.0.0.0/1 dev wg0 table 51820",
        ),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        tunnels=("wg0", "tun0"),
        reasons={"wg0": "0.0.0.0/1 in table 51820"},
    ),
    Situation(
        "a default in a table other than main (UDM)",
        network(
            "lo loopback 127.0.0.1/8\neth8 wired 198.51.100.7/24\nbr0 bridge 192.168.1.1/24",
            "default via 198.51.100.1 dev eth8 table 201\n192.168.1.0/24 dev br0",
        ),
        "eth8",
        Basis.DEFAULT_ROUTE,
        gateway="198.51.100.1",
        reasons={"eth8": "default route via 198.51.100.1 in table 201", "br0": "has no default route"},
    ),
    Situation(
        "main comes before other tables, whatever the metric",
        network(TWO_UPLINKS, "default via 10.2.0.1 dev eth0 table 100\ndefault via 10.1.0.1 dev wifi0 metric 600"),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        reasons={"eth0": "but wifi0 has the default route of table 254"},
    ),
    Situation(
        "two defaults with one metric: the one that the system uses, and it is said",
        network(TWO_UPLINKS, "default via 10.2.0.1 dev eth0 metric 100\ndefault via 10.1.0.1 dev wifi0 metric 100"),
        "eth0",
        Basis.DEFAULT_ROUTE,
        reasons={"wifi0": "but the system itself uses eth0"},
        note="eth0 and wifi0 both have metric 100: took the one that the system uses",
    ),
    Situation(
        "a LAN without a gateway has no default route",
        network(
            "lan0 wired 10.3.0.2/24\nwifi0 wifi 10.1.0.2/24", "10.3.0.0/24 dev lan0\ndefault via 10.1.0.1 dev wifi0 metric 600"
        ),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        reasons={"lan0": "has no default route"},
    ),
    Situation(
        "a LAN whose default has no gateway comes last beneath a VPN",
        network(
            "tun0 tunnel 10.66.0.2/24\nlan0 wired 10.3.0.2/24\nwifi0 wifi 10.1.0.2/24",
            "default dev tun0 metric 50\ndefault dev lan0 metric 100\ndefault via 10.1.0.1 dev wifi0 metric 600",
        ),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        tunnels=("tun0",),
        reasons={"lan0": "but its default route has no gateway"},
    ),
    Situation(
        "the system's own default needs no gateway: a modem",
        network("wwan0 cellular 10.45.0.2/30", "default dev wwan0"),
        "wwan0",
        Basis.DEFAULT_ROUTE,
        reasons={"wwan0": "default route without a gateway"},
    ),
    Situation(
        "a modem beneath a VPN",
        network("tun0 tunnel 10.66.0.2/24\nwwan0 cellular 10.45.0.2/30", "default dev tun0\ndefault dev wwan0 metric 700"),
        "wwan0",
        Basis.DEFAULT_ROUTE,
        tunnels=("tun0",),
    ),
    Situation(
        "docker's and libvirt's bridges are no uplinks",
        network(
            "eth0 wired 10.2.0.2/24\ndocker0 bridge 172.17.0.1/16\nvirbr0 bridge 192.168.122.1/24 no-carrier\n"
            "veth1 other fe80::7/64",
            "default via 10.2.0.1 dev eth0\n172.17.0.0/16 dev docker0\n192.168.122.0/24 dev virbr0",
        ),
        "eth0",
        Basis.DEFAULT_ROUTE,
        reasons={"docker0": "has no default route", "virbr0": "has no carrier", "veth1": "has no IPv4 address"},
    ),
    Situation(
        "a bridge that is the uplink",
        network("br0 bridge 10.2.0.2/24\neth0 wired", "default via 10.2.0.1 dev br0"),
        "br0",
        Basis.DEFAULT_ROUTE,
    ),
    Situation(
        "a container: eth0 is a veth",
        network("lo loopback 127.0.0.1/8\neth0 other 172.17.0.5/16", "default via 172.17.0.1 dev eth0\n172.17.0.0/16 dev eth0"),
        "eth0",
        Basis.DEFAULT_ROUTE,
    ),
    Situation(
        "ZeroTier's tap has a default with a gateway and is a tunnel",
        network(
            "zt0 tunnel 10.147.17.4/24\nwifi0 wifi 10.1.0.2/24",
            "default via 10.147.17.1 dev zt0 metric 10\ndefault via 10.1.0.1 dev wifi0 metric 600",
        ),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        tunnels=("zt0",),
    ),
    Situation(
        "carrier is lost: the next default by metric",
        network(TWO_UPLINKS.replace("10.1.0.2/24", "10.1.0.2/24 no-carrier"), TWO_DEFAULTS),
        "eth0",
        Basis.DEFAULT_ROUTE,
        reasons={"wifi0": "has no carrier"},
    ),
    Situation(
        "administratively down: the next default by metric",
        network(TWO_UPLINKS.replace("10.1.0.2/24", "10.1.0.2/24 down"), TWO_DEFAULTS),
        "eth0",
        Basis.DEFAULT_ROUTE,
        reasons={"wifi0": "is down"},
    ),
    Situation(
        "the address is gone, the default is not",
        network(TWO_UPLINKS.replace("10.1.0.2/24 ", ""), TWO_DEFAULTS),
        "eth0",
        Basis.DEFAULT_ROUTE,
        reasons={"wifi0": "has no IPv4 address"},
    ),
    Situation(
        "only a link-local address, by which the system itself confirms a default",
        network("eth0 wired 169.254.7.7/16", "default dev eth0 metric 1002"),
        "eth0",
        Basis.DEFAULT_ROUTE,
        reasons={"eth0": "default route without a gateway, metric 1002"},
    ),
    Situation(
        "a link-local address comes after any other",
        network(
            "eth0 wired 169.254.7.7/16\nwifi0 wifi 10.1.0.2/24",
            "default dev eth0 metric 2\ndefault via 10.1.0.1 dev wifi0 metric 600",
        ),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        reasons={"eth0": "but its address is link-local"},
    ),
    Situation(
        "an IPv6 address that is link-local is forwarded by nobody",
        network("eth0 wired fe80::7/64", "default6 via fe80::1 dev eth0"),
        None,
        Basis.NONE,
        V6,
        reasons={"eth0": "has no usable IPv6 address (link-local only)"},
    ),
    Situation(
        "a default without a gateway is an uplink's beneath a VPN, if there is no other",
        network(
            "tun0 tunnel 10.66.0.2/24\nvenet0 other 10.3.0.2/32", "default dev tun0 metric 50\ndefault dev venet0 metric 100"
        ),
        "venet0",
        Basis.DEFAULT_ROUTE,
        tunnels=("tun0",),
        reasons={"venet0": "default route without a gateway, metric 100"},
    ),
    Situation(
        "a dormant interface comes after one that is not",
        network(
            "wlan0 wifi 10.1.0.2/24 dormant\neth0 wired 10.2.0.2/24",
            "default via 10.1.0.1 dev wlan0 metric 1\ndefault via 10.2.0.1 dev eth0 metric 700",
        ),
        "eth0",
        Basis.DEFAULT_ROUTE,
        reasons={"wlan0": "but it is dormant"},
    ),
    Situation(
        "a dormant interface is taken where there is no other",
        network("wlan0 wifi 10.1.0.2/24 dormant", "default via 10.1.0.1 dev wlan0 metric 1"),
        "wlan0",
        Basis.DEFAULT_ROUTE,
    ),
    Situation(
        "ProtonVPN's kill switch is a device that carries nothing: looked past, and said",
        network(
            "wifi0 wifi 10.1.0.2/24\npvpnksintrf0 dummy 100.85.0.1/24\nproton0 tunnel 10.2.66.2/32",
            "default dev proton0 metric 50\ndefault via 100.85.0.2 dev pvpnksintrf0 metric 98\n"
            "default via 10.1.0.1 dev wifi0 metric 600",
        ),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        tunnels=("proton0",),
        reasons={"pvpnksintrf0": "carries nothing (a dummy device) (default route)"},
        note="pvpnksintrf0 has a default route and carries nothing",
    ),
    Situation(
        "a kill switch without anything else is named",
        network(
            "wifi0 wifi 10.1.0.2/24\npvpnksintrf0 dummy 100.85.0.1/24",
            "10.1.0.0/24 dev wifi0\ndefault via 100.85.0.2 dev pvpnksintrf0 metric 98",
        ),
        None,
        Basis.NONE,
        reasons={"pvpnksintrf0": "carries nothing", "wifi0": "has no default route"},
        note="pvpnksintrf0 has a default route and carries nothing",
    ),
    Situation(
        "duplicate address detection has not finished",
        network("eth0 wired 2001:db8::2/64!tentative fe80::2/64", "default6 via fe80::1 dev eth0"),
        None,
        Basis.NONE,
        V6,
        reasons={"eth0": "has no usable IPv6 address yet (tentative)"},
    ),
    Situation(
        "ppp is the only uplink",
        network("ppp0 other 100.64.3.4/32 last-resort\neth0 wired 192.168.0.2/24", "default dev ppp0\n192.168.0.0/24 dev eth0"),
        "ppp0",
        Basis.DEFAULT_ROUTE,
    ),
    Situation(
        "ppp has the default, but something else is usable",
        network(
            "ppp0 other 100.64.3.4/32 last-resort\neth0 wired 10.2.0.2/24",
            "default dev ppp0\ndefault via 10.2.0.1 dev eth0 metric 100",
        ),
        "eth0",
        Basis.DEFAULT_ROUTE,
        tunnels=("ppp0",),
        reasons={"ppp0": "is only a last resort"},
    ),
    Situation(
        "wired by metric is behind another kind by metric",
        network(
            "veth9 other 10.9.0.2/24\neth0 wired 10.2.0.2/24",
            "default via 10.9.0.1 dev veth9 metric 1\ndefault via 10.2.0.1 dev eth0 metric 2",
        ),
        "veth9",
        Basis.DEFAULT_ROUTE,
    ),
    Situation(
        "the expensive one is the system's own choice",
        network(TWO_UPLINKS, TWO_DEFAULTS),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        preferences=EXPENSIVE_WIFI,
        note="wifi0 is expensive, but it is the system's own choice",
    ),
    Situation(
        "a tunnel hides the system's choice: the cheaper one",
        network(TWO_UPLINKS, "default dev tun0 metric 50\n" + TWO_DEFAULTS),
        "eth0",
        Basis.DEFAULT_ROUTE,
        tunnels=("tun0",),
        preferences=EXPENSIVE_WIFI,
        reasons={"wifi0": "is expensive, eth0 is not"},
    ),
    Situation(
        "the same, but cost is ignored",
        network(TWO_UPLINKS, "default dev tun0 metric 50\n" + TWO_DEFAULTS),
        "wifi0",
        Basis.DEFAULT_ROUTE,
        tunnels=("tun0",),
        preferences=Preferences(expensive=["wifi*"], cost="ignore"),
    ),
    Situation(
        "never an expensive one",
        network(TWO_UPLINKS, TWO_DEFAULTS),
        "eth0",
        Basis.DEFAULT_ROUTE,
        preferences=Preferences(expensive=["wifi*"], cost="never"),
        reasons={"wifi0": "is expensive, and cost is 'never'"},
    ),
    Situation(
        "never an expensive one, and there is no other",
        network("wwan0 cellular 10.45.0.2/30", "default dev wwan0"),
        None,
        Basis.NONE,
        preferences=Preferences(cost="never"),
    ),
    Situation(
        "excluded by a pattern",
        network(TWO_UPLINKS, TWO_DEFAULTS),
        "eth0",
        Basis.DEFAULT_ROUTE,
        preferences=Preferences(exclude=["docker*", "wifi*"]),
        reasons={"wifi0": "excluded by 'wifi*'"},
    ),
    Situation(
        "only what is included",
        network(TWO_UPLINKS, TWO_DEFAULTS),
        "eth0",
        Basis.DEFAULT_ROUTE,
        preferences=Preferences(include=["eth*", "en*"]),
        reasons={"wifi0": "not included by 'eth*' or 'en*'"},
    ),
    Situation(
        "exclude beats include",
        network(TWO_UPLINKS, TWO_DEFAULTS),
        None,
        Basis.NONE,
        preferences=Preferences(include=["eth*"], exclude=["eth0"]),
        reasons={"eth0": "excluded by 'eth0'"},
    ),
    Situation("no network", network("lo loopback 127.0.0.1/8"), None, Basis.NONE, reasons={"lo": "is the loopback"}),
    Situation("nothing at all", network("", ""), None, Basis.NONE),
    Situation(
        "only the VPN",
        network("lo loopback 127.0.0.1/8\ntun0 tunnel 10.66.0.2/24", "default dev tun0"),
        None,
        Basis.NONE,
        tunnels=("tun0",),
        reasons={"tun0": "is a tunnel (default route)"},
    ),
    Situation(
        "IPv4 by one interface",
        network(
            "en0 wifi 192.168.1.23/24 fe80::1/64\nen5 wired 2001:db8:5::5/64",
            "default via 192.168.1.1 dev en0\ndefault6 via fe80::5 dev en5",
        ),
        "en0",
        Basis.DEFAULT_ROUTE,
        reasons={"en5": "has no IPv4 address"},
    ),
    Situation(
        "and IPv6 by another",
        network(
            "en0 wifi 192.168.1.23/24 fe80::1/64\nen5 wired 2001:db8:5::5/64",
            "default via 192.168.1.1 dev en0\ndefault6 via fe80::5 dev en5",
        ),
        "en5",
        Basis.DEFAULT_ROUTE,
        V6,
        reasons={"en0": "has no usable IPv6 address (link-local only)"},
    ),
    Situation(
        "an uplink with the halves instead of a default",
        network("eth0 wired 2001:db8::2/64", "2000::/3 via fe80::1 dev eth0"),
        "eth0",
        Basis.DEFAULT_ROUTE,
        V6,
        gateway="fe80::1",
        reasons={"eth0": "route to 2000::/3 as its default route via fe80::1"},
    ),
    Situation(
        "a tunnel that was made on top of a device (ip link add type ipip dev eth0)",
        network(
            "wifi0 wifi 10.1.0.2/24\neth0 wired 10.2.0.2/24\nipip0 tunnel 10.88.0.2/24 delegate eth0",
            "default dev ipip0 metric 1\ndefault via 10.1.0.1 dev wifi0 metric 600\ndefault via 10.2.0.1 dev eth0 metric 700",
        ),
        "eth0",
        Basis.DELEGATE,
        tunnels=("ipip0",),
        reasons={"eth0": "ipip0 is delegated to it, default route via 10.2.0.1", "wifi0": "but ipip0 is delegated to eth0"},
    ),
]

EN0_EN5 = "en0 wifi 192.168.1.23/24\nen5 wired 10.20.0.15/16\n"
SCOPED = "default via 192.168.1.1 dev en0 scoped\ndefault via 10.20.0.1 dev en5 scoped\n"
CELLULAR_UNDER_VPN = network(
    "en0 wifi 192.168.1.23/24\npdp_ip0 cellular 10.45.3.7/32\nutun0 tunnel 10.8.0.2/32 delegate pdp_ip0",
    "default dev utun0\ndefault dev pdp_ip0 scoped\ndefault via 192.168.1.1 dev en0 scoped",
)

DARWIN = [
    Situation(
        "Wi-Fi with a VPN as exit node",
        network(
            "en0 wifi 192.168.1.23/24\nutun0 tunnel 10.8.0.2/32 delegate en0",
            "default via 192.168.1.1 dev en0 scoped\ndefault dev utun0",
        ),
        "en0",
        Basis.DELEGATE,
        tunnels=("utun0",),
        gateway="192.168.1.1",
        reasons={"en0": "utun0 is delegated to it, scoped default route via 192.168.1.1"},
    ),
    Situation(
        "VPN over Wi-Fi while Ethernet is up: the delegate is believed",
        network(EN0_EN5 + "utun0 tunnel 10.8.0.2/32 delegate en0", SCOPED + "default dev utun0"),
        "en0",
        Basis.DELEGATE,
        tunnels=("utun0",),
        reasons={"en5": "usable (scoped default route via 10.20.0.1), but utun0 is delegated to en0"},
    ),
    Situation(
        "VPN in VPN",
        network(
            "en0 wifi 192.168.1.23/24\nutun0 tunnel 10.8.0.2/32 delegate en0\nutun1 tunnel 10.66.0.9/32 delegate utun0",
            "default via 192.168.1.1 dev en0 scoped\ndefault dev utun1",
        ),
        "en0",
        Basis.DELEGATE,
        tunnels=("utun1", "utun0"),
    ),
    Situation(
        "OpenVPN's halves on a utun without delegate",
        network(
            "en0 wifi 192.168.1.23/24\nutun3 tunnel 10.9.0.6/32",
            "default via 192.168.1.1 dev en0\n0.0.0.0/1 dev utun3\n128.0.0.0/1 dev utun3",
        ),
        "en0",
        Basis.DEFAULT_ROUTE,
        tunnels=("utun3",),
    ),
    Situation(
        "sing-tun's 1/8 to 128/1",
        network(
            "en0 wifi 192.168.1.23/24\nutun4 tunnel 172.18.0.1/30",
            "default via 192.168.1.1 dev en0\n" + "\n".join(f"{prefix} dev utun4" for prefix in SING_TUN),
        ),
        "en0",
        Basis.DEFAULT_ROUTE,
        tunnels=("utun4",),
    ),
    Situation(
        "a stale delegate: down",
        network(
            "en0 wifi down\npdp_ip0 cellular 10.45.3.7/32\nutun0 tunnel 10.8.0.2/32 delegate en0",
            "default dev pdp_ip0 scoped\ndefault dev utun0",
        ),
        "pdp_ip0",
        Basis.SCOPED_DEFAULT,
        tunnels=("utun0",),
        reasons={"en0": "is down"},
        note="utun0 is delegated to en0, which is not usable: is down",
    ),
    Situation(
        "a stale delegate: its default was left behind, its address was not",
        network(
            "en0 wifi fe80::1/64\nen5 wired 10.20.0.15/16\nutun0 tunnel 10.8.0.2/32 delegate en0", SCOPED + "default dev utun0"
        ),
        "en5",
        Basis.SCOPED_DEFAULT,
        tunnels=("utun0",),
        note="utun0 is delegated to en0, which is not usable: has no IPv4 address",
    ),
    Situation(
        "a detached delegate",
        network(EN0_EN5 + "utun0 tunnel 10.8.0.2/32 delegate 77", SCOPED + "default dev utun0"),
        "en5",
        Basis.SCOPED_DEFAULT,
        tunnels=("utun0",),
        note="utun0 is delegated to index 77, which no longer exists",
        reasons={"en0": "Wi-Fi ranks behind wired en5"},
    ),
    Situation(
        "no delegate",
        network(EN0_EN5 + "utun0 tunnel 10.8.0.2/32", SCOPED + "default dev utun0"),
        "en5",
        Basis.SCOPED_DEFAULT,
        tunnels=("utun0",),
    ),
    Situation(
        "delegates in a circle",
        network(
            EN0_EN5 + "utun0 tunnel 10.8.0.2/32 delegate utun1\nutun1 tunnel 10.9.0.2/32 delegate utun0",
            SCOPED + "default dev utun0",
        ),
        "en5",
        Basis.SCOPED_DEFAULT,
        tunnels=("utun0", "utun1"),
        note="the delegates of utun0 form a circle",
    ),
    Situation(
        "a tunnel delegated to itself",
        network(EN0_EN5 + "utun0 tunnel 10.8.0.2/32 delegate utun0", SCOPED + "default dev utun0"),
        "en5",
        Basis.SCOPED_DEFAULT,
        tunnels=("utun0",),
        note="form a circle",
    ),
    Situation(
        "VPN up, no network beneath",
        network("en0 wifi fe80::1/64\nutun0 tunnel 10.8.0.2/32 delegate en0", "default dev utun0"),
        None,
        Basis.NONE,
        tunnels=("utun0",),
        note="utun0 is delegated to en0, which is not usable",
    ),
    Situation(
        "the VPN came up on cellular, then Wi-Fi came back",
        CELLULAR_UNDER_VPN,
        "en0",
        Basis.SCOPED_DEFAULT,
        tunnels=("utun0",),
        preferences=Preferences(cost="cheapest"),
        reasons={"pdp_ip0": "is expensive, en0 is not"},
        note="utun0 is delegated to pdp_ip0, which is expensive; ignored, because en0 is usable",
    ),
    Situation(
        "the same, but the VPN's word counts",
        CELLULAR_UNDER_VPN,
        "pdp_ip0",
        Basis.DELEGATE,
        tunnels=("utun0",),
        reasons={"en0": "utun0 is delegated to pdp_ip0"},
        note="utun0 is delegated to pdp_ip0, which is expensive, while en0 is usable: cost='cheapest' would take en0",
    ),
    Situation(
        "the same, but cost is ignored",
        CELLULAR_UNDER_VPN,
        "pdp_ip0",
        Basis.DELEGATE,
        tunnels=("utun0",),
        preferences=Preferences(cost="ignore"),
    ),
    Situation(
        "the same, never cellular",
        CELLULAR_UNDER_VPN,
        "en0",
        Basis.SCOPED_DEFAULT,
        tunnels=("utun0",),
        preferences=Preferences(cost="never"),
        reasons={"pdp_ip0": "is expensive, and cost is 'never'"},
    ),
    Situation(
        "on cellular alone the expensive delegate is believed",
        network(
            "pdp_ip0 cellular 10.45.3.7/32\nutun0 tunnel 10.8.0.2/32 delegate pdp_ip0",
            "default dev utun0\ndefault dev pdp_ip0 scoped",
        ),
        "pdp_ip0",
        Basis.DELEGATE,
        tunnels=("utun0",),
    ),
    Situation(
        "two scoped defaults and no unscoped one: wired before Wi-Fi",
        network(EN0_EN5 + "utun0 tunnel 10.8.0.2/32 delegate en0", SCOPED),
        "en5",
        Basis.SCOPED_DEFAULT,
    ),
    Situation(
        "two scoped defaults of one kind: the lower index, and it is said",
        network(
            "en7 wired 10.21.0.2/16\nen5 wired 10.20.0.15/16",
            "default via 10.20.0.1 dev en5 scoped\ndefault via 10.21.0.1 dev en7 scoped",
        ),
        "en7",
        Basis.SCOPED_DEFAULT,
        reasons={"en5": "ranks like en7, which has the lower index"},
        note="en7 and en5 have equal rank: took the one with the lower index",
    ),
    Situation(
        "a bridge to virtual machines has a default, but no gateway",
        network(
            "bridge100 wired 192.168.64.1/24\nen0 wifi 192.168.1.23/24",
            "default dev bridge100 scoped\ndefault via 192.168.1.1 dev en0 scoped",
        ),
        "en0",
        Basis.SCOPED_DEFAULT,
        reasons={"bridge100": "its default route has no gateway"},
    ),
    Situation(
        "scoped IPv6 defaults on the system's own utuns catch nothing",
        network(
            "en0 wifi 2001:db8:1::23/64\nutun0 tunnel fe80::6/64\nutun1 tunnel fe80::7/64",
            "default6 via fe80::1 dev en0\ndefault6 via fe80::6 dev utun0 scoped\ndefault6 via fe80::7 dev utun1 scoped",
        ),
        "en0",
        Basis.DEFAULT_ROUTE,
        V6,
    ),
    Situation(
        "scoped halves on a utun catch nothing",
        network(
            "en0 wifi 192.168.1.23/24\nutun3 tunnel 10.9.0.6/32",
            "default via 192.168.1.1 dev en0\n0.0.0.0/1 dev utun3 scoped\n128.0.0.0/1 dev utun3 scoped",
        ),
        "en0",
        Basis.DEFAULT_ROUTE,
    ),
    Situation(
        "Ethernet is primary, Wi-Fi has a scoped default",
        network(EN0_EN5, "default via 192.168.1.1 dev en0 scoped\ndefault via 10.20.0.1 dev en5"),
        "en5",
        Basis.DEFAULT_ROUTE,
        reasons={"en0": "the system's default route leaves by en5"},
    ),
    Situation(
        "ZeroTier's feth has the unscoped default",
        network(
            "en0 wifi 192.168.1.23/24\nfeth0 tunnel 10.147.17.4/24",
            "default via 10.147.17.1 dev feth0\ndefault via 192.168.1.1 dev en0 scoped",
        ),
        "en0",
        Basis.SCOPED_DEFAULT,
        tunnels=("feth0",),
    ),
]

BRIDGES = network(
    "lo loopback 127.0.0.1/8 ::1/128 fe80::1/64\n"
    "en0 wifi 192.168.1.23/24 2001:db8:1::23/64 fe80::10/64\n"
    "bridge100 bridge 192.168.64.1/24 fe80::11/64\n"
    "utun2 tunnel 10.200.0.7/32 fe80::12/64\n"
    "docker0 bridge 172.17.0.1/16 no-carrier\n"
    "usb0 wired 169.254.3.3/16",
    "default via 192.168.1.1 dev en0\n"
    "default6 via fe80::1 dev en0\n"
    "192.168.1.0/24 dev en0\n"
    "192.168.64.0/24 dev bridge100\n"
    "10.0.0.0/8 dev utun2\n"
    "10.1.0.0/16 via 192.168.64.2 dev bridge100\n"
    "172.17.0.0/16 dev docker0\n"
    "169.254.0.0/16 dev usb0\n"
    "blackhole 198.18.0.0/15\n"
    "203.0.113.0/24 dev bridge100 table 100\n"
    "100.64.0.7/32 dev utun2 table 52\n"
    "224.0.0.0/4 dev bridge100\n"
    "10.66.0.0/16 dev utun2 scoped\n"
    "192.168.64.99/32 dev utun2\n"
    "fd10::/64 dev utun2",
)
SPLIT = Preferences(tunnels="split")
FULL_AND_SPLIT = network(
    "en0 wifi 192.168.1.23/24 2001:db8:1::23/64\nutun3 tunnel 10.9.0.6/24 fd00:9::6/64",
    "default via 192.168.1.1 dev en0\n0.0.0.0/1 dev utun3\n128.0.0.0/1 dev utun3\n10.0.0.0/8 dev utun3\n9.9.9.0/24 dev utun3\n"
    "192.168.1.0/24 dev en0\ndefault6 via fe80::1 dev en0\n2000::/3 dev utun3\nfd00:9::/64 dev utun3",
)
SAME_LAN = network(
    EN0_EN5.replace("10.20.0.15/16", "192.168.1.24/24"),
    "default via 192.168.1.1 dev en5\ndefault via 192.168.1.1 dev en0 scoped\n192.168.1.1/32 dev en0 scoped\n"
    "192.168.1.0/24 dev en5\n172.30.0.0/16 dev en0 scoped",
)

DESTINATIONS = [
    Situation("anywhere else: the default", BRIDGES, "en0", Basis.DEFAULT_ROUTE, "8.8.8.8", gateway="192.168.1.1"),
    Situation(
        "a virtual machine: its bridge",
        BRIDGES,
        "bridge100",
        Basis.LONGEST_PREFIX,
        "192.168.64.5",
        reasons={
            "bridge100": "has the longest prefix, 192.168.64.0/24 on its own link",
            "en0": "is only for what no prefix matches (default route via 192.168.1.1)",
        },
    ),
    Situation(
        "behind a router on a bridge, more specific than the tunnel's route",
        BRIDGES,
        "bridge100",
        Basis.LONGEST_PREFIX,
        "10.1.2.3",
        gateway="192.168.64.2",
        reasons={"bridge100": "10.1.0.0/16 via 192.168.64.2"},
    ),
    Situation(
        "the tunnel's specific route is bypassed",
        BRIDGES,
        "en0",
        Basis.DEFAULT_ROUTE,
        "10.9.2.3",
        tunnels=("utun2",),
        reasons={"utun2": "is a tunnel (10.0.0.0/8)"},
    ),
    Situation(
        "a longer prefix of a tunnel is passed over, too",
        BRIDGES,
        "bridge100",
        Basis.LONGEST_PREFIX,
        "192.168.64.99",
        tunnels=("utun2",),
        reasons={"utun2": "is a tunnel (192.168.64.99)"},
    ),
    Situation(
        "a bridge whose containers are all gone",
        BRIDGES,
        "en0",
        Basis.DEFAULT_ROUTE,
        "172.17.0.9",
        reasons={"docker0": "has no carrier (172.17.0.0/16)"},
    ),
    Situation(
        "an excluded bridge",
        BRIDGES,
        "en0",
        Basis.DEFAULT_ROUTE,
        "192.168.64.5",
        preferences=Preferences(exclude=["bridge*"]),
        reasons={"bridge100": "excluded by 'bridge*' (192.168.64.0/24)"},
    ),
    Situation(
        "a black hole pins nothing and is told",
        BRIDGES,
        "en0",
        Basis.DEFAULT_ROUTE,
        "198.18.0.1",
        note="blackhole for 198.18.0.0/15",
    ),
    Situation("another table's route may not be meant for this", BRIDGES, "en0", Basis.DEFAULT_ROUTE, ANYWHERE),
    Situation("IPv4 link-local: the longest prefix", BRIDGES, "usb0", Basis.LONGEST_PREFIX, "169.254.9.9"),
    Situation("IPv4-mapped: what IPv4 says", BRIDGES, "bridge100", Basis.LONGEST_PREFIX, "::ffff:192.168.64.5"),
    Situation("multicast: the effective interface", BRIDGES, "en0", Basis.DEFAULT_ROUTE, "224.0.0.251"),
    Situation("IPv6 multicast without scope: the effective interface", BRIDGES, "en0", Basis.DEFAULT_ROUTE, "ff02::fb"),
    Situation("IPv6 link-local without scope: the effective interface", BRIDGES, "en0", Basis.DEFAULT_ROUTE, "fe80::99"),
    Situation("limited broadcast: the effective interface", BRIDGES, "en0", Basis.DEFAULT_ROUTE, "255.255.255.255"),
    Situation(
        "a scope id by name",
        BRIDGES,
        "bridge100",
        Basis.LINK_SCOPE,
        "fe80::99%bridge100",
        reasons={"bridge100": "named by the scope id"},
    ),
    Situation("a scope id by index", BRIDGES, "bridge100", Basis.LINK_SCOPE, "fe80::99%3"),
    Situation("multicast with a scope id", BRIDGES, "bridge100", Basis.LINK_SCOPE, "ff02::fb%bridge100"),
    Situation(
        "the scope is down",
        BRIDGES,
        None,
        Basis.LINK_SCOPE,
        "fe80::99%docker0",
        reasons={"docker0": "named by the scope id, but has no carrier"},
    ),
    Situation("the scope does not exist", BRIDGES, None, Basis.LINK_SCOPE, "fe80::99%en9", note="there is no interface en9"),
    Situation(
        "the scope is a tunnel: who says so goes there, but nothing is bound to it",
        BRIDGES,
        None,
        Basis.LINK_SCOPE,
        "fe80::99%utun2",
        unbound=True,
        note="the scope id itself leads to utun2",
    ),
    Situation("a global address keeps nothing of its scope id", BRIDGES, "en0", Basis.DEFAULT_ROUTE, "2001:db8:9::1%bridge100"),
    Situation("loopback", BRIDGES, None, Basis.LOCAL, "127.8.8.8", unbound=True, note="127.8.8.8 is this host"),
    Situation("IPv6 loopback", BRIDGES, None, Basis.LOCAL, "::1", unbound=True),
    Situation("IPv4-mapped loopback", BRIDGES, None, Basis.LOCAL, "::ffff:127.0.0.1", unbound=True),
    Situation("the unspecified address", BRIDGES, None, Basis.LOCAL, "0.0.0.0", unbound=True),
    Situation(
        "the host's own address", BRIDGES, None, Basis.LOCAL, "192.168.64.1", unbound=True, note="own address on bridge100"
    ),
    Situation("a tunnel's own address", BRIDGES, None, Basis.LOCAL, "10.200.0.7", unbound=True),
    Situation("the own link-local address with its scope", BRIDGES, None, Basis.LOCAL, "fe80::10%en0", unbound=True),
    Situation("fe80::1 is lo0's, but on another link it is the router", BRIDGES, "en0", Basis.LINK_SCOPE, "fe80::1%en0"),
    Situation("fe80::1 is lo0's, but without a link it is the router", BRIDGES, "en0", Basis.DEFAULT_ROUTE, "fe80::1"),
    Situation(
        "split tunnel: the tunnel's own destination is left to it",
        BRIDGES,
        None,
        Basis.SPLIT_TUNNEL,
        "10.9.2.3",
        unbound=True,
        preferences=SPLIT,
        reasons={"utun2": "10.0.0.0/8"},
        note="the unbound socket goes into utun2",
    ),
    Situation("split tunnel: in another table", BRIDGES, None, Basis.SPLIT_TUNNEL, "100.64.0.7", unbound=True, preferences=SPLIT),
    Situation("split tunnel: IPv6", BRIDGES, None, Basis.SPLIT_TUNNEL, "fd10::9", unbound=True, preferences=SPLIT),
    Situation(
        "split tunnel: a longer prefix of a bridge wins",
        BRIDGES,
        "bridge100",
        Basis.LONGEST_PREFIX,
        "10.1.2.3",
        preferences=SPLIT,
    ),
    Situation(
        "split tunnel: what is down gets nothing",
        network(
            "en0 wifi 192.168.1.23/24\nutun2 tunnel 10.200.0.7/32 down", "default via 192.168.1.1 dev en0\n10.0.0.0/8 dev utun2"
        ),
        "en0",
        Basis.DEFAULT_ROUTE,
        "10.9.2.3",
        preferences=SPLIT,
    ),
    Situation(
        "split tunnel: an unbound socket does not see the tunnel's scoped routes",
        network(
            "en0 wifi 192.168.1.23/24\nutun2 tunnel 10.200.0.7/32", "default via 192.168.1.1 dev en0\n10.0.0.0/8 dev utun2 scoped"
        ),
        "en0",
        Basis.DEFAULT_ROUTE,
        "10.9.2.3",
        preferences=SPLIT,
    ),
    Situation("split tunnel: elsewhere the default", BRIDGES, "en0", Basis.DEFAULT_ROUTE, "8.8.8.8", preferences=SPLIT),
    Situation(
        "split tunnel: the halves are no route of its own",
        FULL_AND_SPLIT,
        "en0",
        Basis.DEFAULT_ROUTE,
        "8.8.8.8",
        tunnels=("utun3",),
        preferences=SPLIT,
    ),
    Situation(
        "split tunnel: 2000::/3 is no route of its own",
        FULL_AND_SPLIT,
        "en0",
        Basis.DEFAULT_ROUTE,
        "2606:4700::1",
        tunnels=("utun3",),
        preferences=SPLIT,
    ),
    Situation(
        "split tunnel: but its own network is",
        FULL_AND_SPLIT,
        None,
        Basis.SPLIT_TUNNEL,
        "fd00:9::1",
        unbound=True,
        preferences=SPLIT,
    ),
    Situation(
        "split tunnel: and what lies within the halves",
        FULL_AND_SPLIT,
        None,
        Basis.SPLIT_TUNNEL,
        "9.9.9.9",
        unbound=True,
        preferences=SPLIT,
    ),
    Situation(
        "split tunnel: and private addresses",
        FULL_AND_SPLIT,
        None,
        Basis.SPLIT_TUNNEL,
        "10.3.3.3",
        unbound=True,
        preferences=SPLIT,
    ),
    Situation("the LAN beneath a VPN with halves", FULL_AND_SPLIT, "en0", Basis.LONGEST_PREFIX, "192.168.1.77"),
    Situation("two cards on one LAN: the route that unbound sockets see", SAME_LAN, "en5", Basis.LONGEST_PREFIX, "192.168.1.1"),
    Situation("a scoped route where no other is specific", SAME_LAN, "en0", Basis.LONGEST_PREFIX, "172.30.1.1"),
    Situation(
        "two cards on one LAN: the metric",
        network(
            "eth0 wired 10.1.0.3/24\nwifi0 wifi 10.1.0.2/24", "10.1.0.0/24 dev wifi0 metric 600\n10.1.0.0/24 dev eth0 metric 100"
        ),
        "eth0",
        Basis.LONGEST_PREFIX,
        "10.1.0.9",
    ),
    Situation(
        "two cards on one LAN: the better one has no carrier",
        network(
            "eth0 wired 10.1.0.3/24 no-carrier\nwifi0 wifi 10.1.0.2/24",
            "10.1.0.0/24 dev wifi0 metric 600\n10.1.0.0/24 dev eth0 metric 100",
        ),
        "wifi0",
        Basis.LONGEST_PREFIX,
        "10.1.0.9",
        reasons={"eth0": "has no carrier (10.1.0.0/24)"},
    ),
    Situation(
        "a LAN without any default route",
        network("lan0 wired 10.3.0.2/24", "10.3.0.0/24 dev lan0"),
        "lan0",
        Basis.LONGEST_PREFIX,
        "10.3.0.9",
    ),
    Situation(
        "ppp's specific route is a VPN's while something else is usable",
        network(
            "ppp0 other 10.5.0.2/32 last-resort\neth0 wired 10.2.0.2/24", "default via 10.2.0.1 dev eth0\n10.0.0.0/8 dev ppp0"
        ),
        "eth0",
        Basis.DEFAULT_ROUTE,
        "10.9.9.9",
        tunnels=("ppp0",),
        reasons={"ppp0": "is a tunnel (10.0.0.0/8)"},
    ),
    Situation(
        "ppp's specific route is the uplink's where it is the uplink",
        network("ppp0 other 100.64.3.4/32 last-resort", "default dev ppp0\n100.64.0.1/32 dev ppp0"),
        "ppp0",
        Basis.LONGEST_PREFIX,
        "100.64.0.1",
        preferences=SPLIT,
    ),
]

PINS = [
    Situation(
        "a pin beats the metric",
        network(TWO_UPLINKS, TWO_DEFAULTS),
        "eth0",
        Basis.PINNED,
        pin="eth0",
        gateway="10.2.0.1",
        reasons={"eth0": "is pinned"},
    ),
    Situation("a pin beats a nearer route", BRIDGES, "en0", Basis.PINNED, "192.168.64.5", pin="en0"),
    Situation(
        "a pin beats exclude", BRIDGES, "en0", Basis.PINNED, pin="en0", preferences=Preferences(exclude=["*"], cost="never")
    ),
    Situation("a pin beats the scope id", BRIDGES, "en0", Basis.PINNED, "fe80::99%bridge100", pin="en0"),
    Situation("a pin beats the split tunnel", BRIDGES, "en0", Basis.PINNED, "10.9.2.3", pin="en0", preferences=SPLIT),
    Situation("a tunnel may be pinned", BRIDGES, "utun2", Basis.PINNED, pin="utun2", note="the pinned interface is a tunnel"),
    Situation("a LAN without a default route may be pinned", BRIDGES, "bridge100", Basis.PINNED, ANYWHERE, pin="bridge100"),
    Situation("a link-local LAN may be pinned", BRIDGES, "usb0", Basis.PINNED, "169.254.1.1", pin="usb0"),
    Situation(
        "a link-local LAN reaches nothing else",
        BRIDGES,
        None,
        Basis.PINNED,
        ANYWHERE,
        pin="usb0",
        reasons={"usb0": "link-local only"},
    ),
    Situation(
        "the pinned one is missing",
        BRIDGES,
        None,
        Basis.PINNED,
        pin="en9",
        reasons={"en9": "is pinned, but there is no interface of that name"},
    ),
    Situation(
        "the pinned one is down",
        network("en0 wifi 10.1.0.2/24\nen1 wired 10.2.0.2/24 down", "default via 10.1.0.1 dev en0"),
        None,
        Basis.PINNED,
        pin="en1",
        reasons={"en1": "is pinned, but is down"},
    ),
    Situation(
        "the pinned one has no carrier",
        BRIDGES,
        None,
        Basis.PINNED,
        pin="docker0",
        reasons={"docker0": "is pinned, but has no carrier"},
    ),
    Situation(
        "the pinned one has no address of the family",
        BRIDGES,
        None,
        Basis.PINNED,
        V6,
        pin="usb0",
        reasons={"usb0": "is pinned, but has no IPv6 address"},
    ),
    Situation(
        "a pin does not cut off the host itself",
        BRIDGES,
        None,
        Basis.LOCAL,
        "127.0.0.1",
        pin="en0",
        unbound=True,
        note="the pin to en0 does not apply",
    ),
]


def titled(situations: list[Situation]) -> list[Any]:
    return [pytest.param(situation, id=situation.title) for situation in situations]


@pytest.mark.parametrize("situation", titled(LINUX + DARWIN + DESTINATIONS + PINS))
def test_situation(situation: Situation) -> None:
    target = address(situation.target) if isinstance(situation.target, str) else situation.target
    decision = decide(situation.network, target, situation.preferences, interface=situation.pin)

    assert interface_name(decision) == situation.interface, str(decision)
    assert decision.basis is situation.basis, str(decision)
    assert decision.tunnels == situation.tunnels
    assert decision.unbound is situation.unbound
    assert decision.target == target
    if situation.gateway is not None:
        assert str(decision.gateway) == situation.gateway
    for name, part in situation.reasons.items():
        assert part in reason(decision, name)
    if situation.note:
        assert any(situation.note in note for note in decision.notes), str(decision)
    taken = [candidate.interface for candidate in decision.candidates if candidate.taken]
    assert taken == ([] if situation.interface is None else [situation.interface])


@pytest.mark.parametrize("situation", titled(LINUX + DARWIN))
def test_every_interface_is_accounted_for(situation: Situation) -> None:
    decision = decide(situation.network, situation.target if isinstance(situation.target, int) else V4, situation.preferences)
    assert sorted(c.index for c in decision.candidates) == sorted(situation.network.interfaces)


def test_an_ipv4_mapped_destination_is_a_matter_of_ipv4() -> None:
    assert decide(BRIDGES, address("::ffff:192.168.64.5")).family == V4


def test_renumbering_is_another_path_by_the_same_name() -> None:
    before = network("en0 wifi 192.168.1.23/24", "default via 192.168.1.1 dev en0")
    renumbered = network("en0 wifi 192.168.1.77/24", "default via 192.168.1.1 dev en0")
    other_wifi = network("en0 wifi 192.168.1.23/24", "default via 192.168.1.254 dev en0")
    paths = [Decider(n).path(V4) for n in (before, renumbered, other_wifi)]
    assert [None if path is None else path.interface for path in paths] == ["en0", "en0", "en0"]
    assert len(set(paths)) == 3


def test_what_does_not_concern_the_path_leaves_it_as_it_is() -> None:
    before = network("en0 wifi 192.168.1.23/24", "default via 192.168.1.1 dev en0")
    docker = network(
        "en0 wifi 192.168.1.23/24\ndocker0 bridge 172.17.0.1/16", "172.17.0.0/16 dev docker0\ndefault via 192.168.1.1 dev en0"
    )
    vpn = network(
        "en0 wifi 192.168.1.23/24\ntun0 tunnel 10.66.0.2/24", "default dev tun0\ndefault via 192.168.1.1 dev en0 metric 5"
    )
    assert Decider(before).path(V4) == Decider(docker).path(V4) == Decider(vpn).path(V4) is not None


def test_a_pin_follows_the_name_across_a_new_index() -> None:
    old = network("en0 wifi 10.1.0.2/24\nen7 wired 10.2.0.2/24")
    new = network("en0 wifi 10.1.0.2/24\nen1 wired\nen7 wired 10.2.0.2/24")
    indices = [d.interface and d.interface.index for d in (decide(n, V4, interface="en7") for n in (old, new))]
    assert indices == [2, 3]


def test_candidates_are_in_order_of_how_near_they_came() -> None:
    made = network(
        "lo loopback 127.0.0.1/8\ntun0 tunnel 10.66.0.2/24\ndown0 wired 10.9.0.2/24 down\nlan0 wired 10.3.0.2/24\n"
        "eth0 wired 10.2.0.2/24\nwifi0 wifi 10.1.0.2/24",
        "default via 10.1.0.1 dev wifi0 metric 1\ndefault via 10.2.0.1 dev eth0 metric 2",
    )
    assert [c.interface for c in decide(made, V4).candidates] == ["wifi0", "eth0", "lan0", "down0", "tun0", "lo"]


def test_a_dead_interface_with_the_best_default_counts_like_one_that_is_gone() -> None:
    routes = "default via 10.1.0.1 dev 3 metric 1\ndefault dev wwan0 metric 2\ndefault via 10.2.0.1 dev eth0 metric 3"
    dead = network("wwan0 cellular 10.45.0.2/30\neth0 wired 10.2.0.2/24\neth9 wired 10.1.0.2/24 no-carrier", routes)
    gone = network("wwan0 cellular 10.45.0.2/30\neth0 wired 10.2.0.2/24", routes)
    assert interface_name(decide(dead, V4)) == interface_name(decide(gone, V4)) == "wwan0"


def test_the_decider_agrees_with_decide() -> None:
    for situation in DESTINATIONS + PINS:
        decider = Decider(situation.network, situation.preferences, interface=situation.pin)
        targets: list[Target] = [V4, V6, *map(address, ("8.8.8.8", "192.168.64.5", "10.9.2.3", "fe80::99%3", "::1"))]
        for target in targets:
            expected = decide(situation.network, target, situation.preferences, interface=situation.pin)
            assert decider.decide(target) == expected == decider.decide(target)
            assert decider.path(target) == path_of(expected)


def test_a_decision_is_made_once() -> None:
    decider = Decider(BRIDGES)
    assert decider.decide(address("8.8.8.8")) is decider.decide(address("8.8.8.8"))
    assert decider.decide(address("8.8.8.8")).candidates is decider.decide(address("9.9.9.9")).candidates
    assert decider.decide(address("192.168.64.5")).candidates is decider.decide(address("192.168.64.6")).candidates
    assert decider.path(address("8.8.8.8")) is decider.path(V4)


def test_one_route_is_judged_apart_for_the_link_and_for_beyond() -> None:
    made = network("usb0 wired 169.254.3.3/16\nen0 wifi 10.1.0.2/24", "169.0.0.0/8 dev usb0\ndefault via 10.1.0.1 dev en0")
    decider = Decider(made)
    assert interface_name(decider.decide(address("169.254.9.9"))) == "usb0"
    assert interface_name(decider.decide(address("169.1.1.1"))) == "en0"


def test_a_decider_does_not_remember_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bindsock.routing.effective._REMEMBERED", 16)
    decider = Decider(BRIDGES)
    made = [decider.decide(ipaddress.IPv4Address(0x08000000 + number)) for number in range(1000)]
    assert sum(decider.decide(decision.target) is decision for decision in reversed(made)) <= 16


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("127.0.0.1", True),
        ("127.255.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("::", True),
        ("192.168.1.23", True),
        ("::ffff:192.168.1.23", True),
        ("10.200.0.7", True),
        ("fe80::10", True),
        ("fe80::10%en0", True),
        ("fe80::10%bridge100", False),
        ("fe80::10%nothing", False),
        ("fe80::1", False),
        ("fe80::1%lo", True),
        ("192.168.1.24", False),
        ("8.8.8.8", False),
        ("2001:db8:1::24", False),
        ("128.0.0.1", False),
    ],
)
def test_is_local(text: str, local: bool) -> None:
    assert Decider(BRIDGES).is_local(address(text)) is local


def test_a_network_at_odds_with_itself_gives_a_decision() -> None:
    eth0 = Interface("eth0", 9, InterfaceKind.WIRED, delegate=0)
    routes = (
        Route(ipaddress.ip_network("0.0.0.0/0"), 44),
        Route(ipaddress.ip_network("0.0.0.0/0"), None),
        Route(ipaddress.ip_network("10.0.0.0/8"), 44),
        Route(ipaddress.ip_network("10.0.0.0/8"), None),
    )
    nowhere = Lookup(Route(ipaddress.ip_network("::/0"), 3))
    made = Network(
        {3: eth0, 4: replace(eth0, kind=InterfaceKind.TUNNEL)},
        routes,
        {(3, V6): nowhere, (7, V4): nowhere, (44, V4): nowhere},
        {V4: nowhere},
    )
    for target in (V4, V6, address("10.0.0.1"), address("fe80::1%3"), address("fe80::1%99999999999999999999")):
        assert decide(made, target).interface is None


def test_a_decision_reads_as_a_sentence_and_its_reasons() -> None:
    made = network(TWO_UPLINKS, "default dev tun0 metric 50\ndefault via 10.1.0.1 dev wifi0 metric 600\n10.2.0.0/24 dev eth0")
    assert str(decide(made, address(ANYWHERE))) == (
        "203.0.113.9 leaves by wifi0 via 10.1.0.1 (default route), bypassing tun0\n"
        "  + wifi0  default route via 10.1.0.1, metric 600\n"
        "  - eth0   has no default route\n"
        "  - tun0   is a tunnel (default route)\n"
        "  - lo     is the loopback"
    )
    assert str(decide(made, address("10.2.0.7"))).startswith("10.2.0.7 leaves by eth0 (longest prefix)\n")
    assert (
        str(decide(made, address("127.0.0.1")))
        == "127.0.0.1 is not bound to an interface (local)\n  note: 127.0.0.1 is this host"
    )
    assert str(decide(Network(), V6)) == "IPv6 has no effective interface"
    assert str(decide(Network(), V4, interface="en0")).startswith("IPv4 has no effective interface (pinned)\n  - en0  is pinned")


def test_cellular_is_expensive_and_so_is_what_is_named_or_marked() -> None:
    usb = Interface("usb0", 1, InterfaceKind.WIRED)
    assert not is_expensive(usb, Preferences())
    assert is_expensive(usb, Preferences(expensive=["usb*"]))
    assert is_expensive(replace(usb, expensive=True), Preferences())
    assert is_expensive(replace(usb, kind=InterfaceKind.CELLULAR), Preferences())


def test_preferences_are_values() -> None:
    preferences = Preferences(include=["en*"], exclude=("docker*",))
    assert preferences.include == ("en*",)
    assert preferences == Preferences(include=("en*",), exclude=["docker*"])
    assert hash(preferences) == hash(Preferences(include=("en*",), exclude=["docker*"]))


@pytest.mark.parametrize("name", ["include", "exclude", "expensive"])
def test_a_bare_string_is_no_sequence_of_patterns(name: str) -> None:
    wrong: dict[str, Any] = {name: "docker*"}
    with pytest.raises(TypeError, match=rf"{name} must be a sequence of patterns, not the string 'docker\*'"):
        Preferences(**wrong)
    wrong = {name: [1]}
    with pytest.raises(TypeError, match=f"{name} must be a sequence of strings"):
        Preferences(**wrong)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cost", "cost must be 'avoid', 'cheapest', 'ignore' or 'never', not 'x'"),
        ("tunnels", "tunnels must be 'bypass' or 'split', not 'x'"),
        ("on_no_interface", "on_no_interface must be 'error', 'wait' or 'unbound', not 'x'"),
    ],
)
def test_an_unknown_choice_names_the_valid_ones(name: str, message: str) -> None:
    wrong: dict[str, Any] = {name: "x"}
    with pytest.raises(ValueError, match=message):
        Preferences(**wrong)


@pytest.mark.parametrize("interface", [None, "en0"])
def test_what_stays_on_the_link_has_no_next_hop(interface: str | None) -> None:
    for target in ("ff02::fb", "fe80::77", "224.0.0.251", "255.255.255.255"):
        decision = decide(BRIDGES, ipaddress.ip_address(target), interface=interface)
        assert (decision.interface and decision.interface.name, decision.gateway) == ("en0", None)
        assert " via " not in str(decision).splitlines()[0]
    assert str(decide(BRIDGES, ipaddress.ip_address("192.0.2.1"), interface=interface).gateway) == "192.168.1.1"
