"""Real programs manage an uplink, with a real VPN: leases are renewed, and changed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from bindsock.testing.lab import Lab, available
from tests.integrations.tunnel import nothing_through_the_tunnel
from tests.vpn.checks import bindsock, decided_right, decisions, has_the_default, left_by
from tests.vpn.journey import Journey
from tests.vpn.machine import Machine, missing
from tests.vpn.managers import (
    LISTEN_TO_ROUTERS,
    MANAGERS,
    NETWORKD_THAT_REMOVES_RULES,
    PPPOE_ADDRESS,
    PPPOE_CLIENT,
    PPPOE_SERVER,
    Advertisement,
    Manager,
    advertise,
    lease,
)
from tests.vpn.programs import VPNS, Vpn, cases
from tests.vpn.traffic import Echoes, fresh

# A journey has a dozen events and waits for each: two minutes are not enough on a busy machine.
pytestmark = [pytest.mark.lab, pytest.mark.vpn, pytest.mark.timeout(600)]
VPN = VPNS[0]
VPN_TABLE = 51820
BENEATH_DHCLIENT = ("openvpn-static-def1", "openvpn-tls-persist", "tinc", "charon-libipsec")
"""The manager's default route has no metric: n2n's cannot be added beside it, and openconnect's script replaces it."""
OTHERS = tuple(vpn for vpn in VPNS if not vpn.name.startswith("wg-quick"))
FIRST, SECOND = "10.1.0.50", "10.1.0.51"


def obtains(host: Machine, script: str, address: str) -> None:
    """Run a script and wait until the uplink has the address and a default route."""
    host.run(script)
    default = "ip -4 route show default dev wifi0 | grep -q 'via 10.1.0.1'"
    host.until(f"ip -4 address show dev wifi0 | grep -q 'inet {address}/' && {default}")


@contextlib.contextmanager
def machines(lab: Lab, directory: Path, *needs: str, vpn: Vpn = VPN) -> Iterator[tuple[Machine, Machine]]:
    """The host, prepared to start the VPN, and the router."""
    if (reason := available(vpn=True) or missing(*needs, *vpn.needs)) is not None:
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        host, gate, router = (stack.enter_context(Machine(lab, name, directory)) for name in ("host", "vpn", "router"))
        gate.run(vpn.serve)
        yield host, router


@contextlib.contextmanager
def beneath_a_vpn(lab: Lab, host: Machine, *interfaces: str, vpn: Vpn = VPN) -> Iterator[Journey]:
    """Start the VPN while connections are open."""
    with Journey(lab) as journey:
        journey.settled(*interfaces)
        with nothing_through_the_tunnel(lab, vpn.device):
            journey.undisturbed("start of the VPN", lambda: vpn.start(host), *interfaces)
            has_the_default(lab, vpn)
            decided_right(lab, vpn, *interfaces)
            left_by(lab, journey.fresh(), *interfaces)
            yield journey
            journey.finish()


@pytest.mark.parametrize("manager", MANAGERS, ids=lambda manager: manager.name)
def test_connections_stay_through_renewed_leases_and_move_to_other_addresses(lab: Lab, tmp_path: Path, manager: Manager) -> None:
    with machines(lab, tmp_path, "dnsmasq", *manager.needs) as (host, router):
        obtain = functools.partial(obtains, host)
        lab.ip("address", "delete", f"{lab.address('wifi0')}/24", "dev", "wifi0")
        router.run(lease(FIRST))
        obtain(manager.start, FIRST)
        with beneath_a_vpn(lab, host, "wifi0") as journey:
            journey.undisturbed("renewal", lambda: obtain(manager.renew, FIRST), "wifi0")
            journey.through("restart", lambda: obtain(manager.restart, FIRST), "wifi0", may_lose_replies=(4,), gap=(4,))
            router.run(lease(SECOND))
            anew = functools.partial(obtain, manager.ask_anew, SECOND)
            journey.through("another lease", anew, "wifi0", may_lose_replies=manager.takes, gap=(4,))
            decided_right(lab, VPN, "wifi0")
            left_by(lab, journey.fresh(), "wifi0")


@pytest.mark.parametrize("vpn", cases(OTHERS))
def test_connections_move_to_another_lease_beneath_every_kind_of_vpn(lab: Lab, tmp_path: Path, vpn: Vpn) -> None:
    manager = MANAGERS[0 if vpn.name in BENEATH_DHCLIENT else 1]
    with machines(lab, tmp_path, "dnsmasq", *manager.needs, vpn=vpn) as (host, router):
        obtain = functools.partial(obtains, host)
        lab.ip("address", "delete", f"{lab.address('wifi0')}/24", "dev", "wifi0")
        router.run(lease(FIRST))
        obtain(manager.start, FIRST)
        with beneath_a_vpn(lab, host, "wifi0", vpn=vpn) as journey:
            journey.undisturbed("renewal", lambda: obtain(manager.renew, FIRST), "wifi0")
            for address in (SECOND, FIRST):
                router.run(lease(address))
                anew = functools.partial(obtain, manager.ask_anew, address)
                journey.through(f"lease of {address}", anew, "wifi0", may_lose_replies=(4,), gap=(4,))
                decided_right(lab, vpn, "wifi0")
            left_by(lab, journey.fresh(), "wifi0")


def test_connections_leave_an_uplink_whose_leased_default_a_vpn_replaces(lab: Lab, tmp_path: Path) -> None:
    manager = MANAGERS[0]
    (vpn,) = (vpn for vpn in VPNS if vpn.name == "openconnect")
    with machines(lab, tmp_path, "dnsmasq", *manager.needs, vpn=vpn) as (host, router), contextlib.ExitStack() as stack:
        lab.ip("address", "delete", f"{lab.address('wifi0')}/24", "dev", "wifi0")
        router.run(lease(FIRST))
        obtains(host, manager.start, FIRST)
        journey = stack.enter_context(Journey(lab))
        journey.settled("wifi0")
        stack.enter_context(nothing_through_the_tunnel(lab, vpn.device))
        journey.moves("start of the VPN", lambda: vpn.start(host), "eth0", "wifi0", families=(4,), gone="wifi0", gap=(4,))
        has_the_default(lab, vpn)
        decided_right(lab, vpn, "eth0", "wifi0")
        router.run(lease(SECOND))

        def ask_anew() -> None:
            host.run(manager.ask_anew)
            host.until(f"ip -4 address show dev wifi0 | grep -q 'inet {SECOND}/'")

        journey.undisturbed("another lease", ask_anew, "eth0", "wifi0")
        left_by(lab, journey.fresh(), "eth0", "wifi0")
        journey.finish()


def test_connections_stay_when_networkd_takes_the_default_from_the_vpn(lab: Lab, tmp_path: Path) -> None:
    manager = NETWORKD_THAT_REMOVES_RULES
    with machines(lab, tmp_path, "dnsmasq", *manager.needs) as (host, router):
        lab.ip("address", "delete", f"{lab.address('wifi0')}/24", "dev", "wifi0")
        router.run(lease(FIRST))
        obtains(host, manager.start, FIRST)
        with beneath_a_vpn(lab, host, "wifi0") as journey:

            def configure_again() -> None:
                host.run(manager.ask_anew)
                host.until(f"! ip -4 rule | grep -q {VPN_TABLE} && ! ip -6 rule | grep -q {VPN_TABLE}")
                obtains(host, "", FIRST)

            journey.through("removal of the rules", configure_again, "wifi0", may_lose_replies=manager.takes, gap=(4,))
            for _, decision in decisions(lab):
                assert (decision["interface"], decision["tunnels"]) == ("wifi0", [])
            left_by(lab, journey.fresh(), "wifi0")


@contextlib.contextmanager
def listening_to_routers(lab: Lab, directory: Path, *said: Advertisement) -> Iterator[tuple[Machine, Machine]]:
    """A host that configures IPv6 by the router's advertisements."""
    with machines(lab, directory, "radvd") as (host, router):
        host.run(LISTEN_TO_ROUTERS)
        router.run(advertise(*said))
        host.until("[ $(ip -6 route show default | grep -c 'proto ra') -eq 2 ]")
        yield host, router


def test_the_preferred_router_is_taken(lab: Lab, tmp_path: Path) -> None:
    high, low = Advertisement("high"), Advertisement("low")
    with (
        listening_to_routers(lab, tmp_path, high, low) as (host, router),
        beneath_a_vpn(lab, host, "wifi0") as journey,
    ):
        for name, other in (("eth0", "wifi0"), ("wifi0", "eth0")):

            def prefer(name: str = name) -> None:
                router.run(advertise(*((low, high) if name == "eth0" else (high, low))))
                host.until(f"ip -6 route show default dev {name} | grep -q 'pref high'")

            journey.moves(f"preference of {name}", prefer, "wifi0", name, families=(6,))
            assert other not in [interface for what, interface, _ in journey.fresh() if ":" in what]


def test_connections_leave_a_router_that_is_none_any_more_and_stay_when_the_prefix_changes(lab: Lab, tmp_path: Path) -> None:
    with (
        listening_to_routers(lab, tmp_path, Advertisement("low"), Advertisement("high")) as (host, router),
        beneath_a_vpn(lab, host, "wifi0", "eth0") as journey,
    ):

        def end() -> None:
            router.run(advertise(Advertisement("low"), Advertisement("high", lifetime=0)))
            host.until("! ip -6 route show default dev eth0 | grep -q via")

        def renumber() -> None:
            router.run(advertise(Advertisement("low", prefix="fd10:1:1::/64"), Advertisement("high", lifetime=0)))
            host.until("ip -6 address show dev wifi0 | grep -q fd10:1:1:")

        journey.moves("no router", end, "wifi0", families=(6,), gone="eth0")
        left_by(lab, journey.fresh(), "wifi0")
        journey.undisturbed("another prefix", renumber, "wifi0")
        left_by(lab, journey.fresh(), "wifi0")


def test_pppoe_is_the_uplink_when_there_is_no_other(lab: Lab, tmp_path: Path) -> None:
    (vpn,) = (vpn for vpn in VPNS if vpn.name == "openvpn-static-def1")
    with machines(lab, tmp_path, "pppd", "pppoe", "pppoe-server", vpn=vpn) as (host, router):
        if not host.succeeds("test -c /dev/ppp"):
            pytest.skip("the kernel lacks PPP (CONFIG_PPP_ASYNC)")
        lab.remove_addresses("wifi0")
        lab.down("eth0")
        router.run(PPPOE_SERVER)
        host.run(PPPOE_CLIENT)
        host.until("ip -4 route show default dev ppp0 | grep -q default")
        vpn.start(host)
        assert bindsock("status")["effective"]["ipv4"]["interface"] == "ppp0"
        with nothing_through_the_tunnel(lab, vpn.device):
            left = asyncio.run(fresh(Echoes([lab.server.ipv4], lab.server.udp_port, lab.server.tcp_port)))
        assert [(interface, source) for _, interface, source in left] == [("ppp0", PPPOE_ADDRESS)] * 2
