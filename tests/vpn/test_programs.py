"""Real VPN programs take the default route, restart, crash: connections bypass them throughout, and lose nothing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from bindsock.testing.lab import Lab, available
from tests.integrations.tunnel import nothing_through_the_tunnel
from tests.vpn.checks import decided_right, has_the_default, is_refused, left_by
from tests.vpn.journey import Journey
from tests.vpn.machine import Machine
from tests.vpn.programs import KILL_SWITCHES, REDIRECTING, REPLACING, VPNS, WITHOUT_DEVICE, Vpn, cases

# A journey has a dozen events and waits for each: two minutes are not enough on a busy machine.
pytestmark = [pytest.mark.lab, pytest.mark.vpn, pytest.mark.timeout(600)]


@contextlib.contextmanager
def ready(lab: Lab, directory: Path, vpn: Vpn) -> Iterator[Machine]:
    """The host, prepared to start the program."""
    if (reason := available(vpn=True)) is not None:
        pytest.skip(reason)
    with Machine(lab, "host", directory) as host, Machine(lab, "vpn", directory) as gate:
        if (reason := vpn.obstacle(host)) is not None:
            pytest.skip(reason)
        host.run(vpn.prepare)
        gate.run(vpn.serve)
        yield host


@contextlib.contextmanager
def beside(lab: Lab, directory: Path, vpn: Vpn) -> Iterator[tuple[Machine, Journey]]:
    """The host, prepared to start the program, and open connections."""
    with ready(lab, directory, vpn) as host, Journey(lab) as journey:
        journey.settled("wifi0")
        with nothing_through_the_tunnel(lab, vpn.device or "-"), lab.tap(protocol=vpn.encapsulated or "-") as tap:
            yield host, journey
            journey.finish()
            # The one datagram is the test's own check that the VPN takes unbound packets.
            assert len(tap.packets) == bool(vpn.encapsulated)


def start_and_restart(lab: Lab, vpn: Vpn, host: Machine, journey: Journey) -> None:
    """Start the VPN, check that nothing goes through it, and do all that restarts it."""
    journey.undisturbed("start", lambda: vpn.start(host), "wifi0")
    has_the_default(lab, vpn)
    decided_right(lab, vpn, "wifi0")
    left_by(lab, journey.fresh(), "wifi0")
    for name, script in vpn.restarts.items():
        journey.undisturbed(name, functools.partial(host.run, script), "wifi0")


@pytest.mark.parametrize("vpn", cases(VPNS))
def test_connections_stay_beneath_a_vpn_whatever_it_does(lab: Lab, tmp_path: Path, vpn: Vpn) -> None:
    with beside(lab, tmp_path, vpn) as (host, journey):
        start_and_restart(lab, vpn, host, journey)
        journey.moves("a better uplink", lambda: lab.default("eth0"), "eth0")
        decided_right(lab, vpn, "eth0")
        journey.moves("loss of the uplink", lambda: lab.down("eth0"), "wifi0", gone="eth0", gap=(4, 6))
        journey.moves("its return", lambda: lab.up("eth0"), "eth0")
        journey.moves("the other uplink", lambda: lab.default("wifi0"), "wifi0")
        journey.moves("another address", lambda: lab.renumber("wifi0", "b"), "wifi0", gone="wifi0")
        journey.undisturbed("stop", lambda: host.run(vpn.down), "wifi0")
        journey.moves("the address before", lambda: lab.renumber("wifi0", "a"), "wifi0", gone="wifi0")
        journey.undisturbed("another start", lambda: vpn.start(host), "wifi0")
        journey.undisturbed("crash", lambda: host.run(vpn.crash), "wifi0")
        left_by(lab, journey.fresh(), "wifi0")


@pytest.mark.parametrize("vpn", cases(WITHOUT_DEVICE))
def test_connections_go_by_the_uplink_that_a_vpn_without_a_device_uses(lab: Lab, tmp_path: Path, vpn: Vpn) -> None:
    with beside(lab, tmp_path, vpn) as (host, journey):
        start_and_restart(lab, vpn, host, journey)
        journey.moves("a better uplink", lambda: lab.default("eth0"), "wifi0", "eth0", families=(6,))
        decided_right(lab, vpn, "wifi0", "eth0")
        journey.through("loss of the VPN's uplink", lambda: lab.down("wifi0"), "eth0", may_lose_replies=(4,), gap=(4,))
        decided_right(lab, vpn, "eth0")
        journey.undisturbed("its return", lambda: lab.up("wifi0"), "eth0")
        left_by(lab, journey.fresh(), "eth0")
        journey.undisturbed("stop", lambda: host.run(vpn.down), "eth0")
        journey.undisturbed("another start", lambda: vpn.start(host), "eth0")
        journey.undisturbed("crash", lambda: host.run(vpn.crash), "eth0")
        left_by(lab, journey.fresh(), "eth0")


@pytest.mark.parametrize("vpn", cases(REPLACING))
def test_connections_move_when_a_vpn_deletes_the_default_of_their_uplink(lab: Lab, tmp_path: Path, vpn: Vpn) -> None:
    with beside(lab, tmp_path, vpn) as (host, journey):
        deleted = functools.partial(journey.moves, families=(4,), gone="wifi0", gap=(4,))
        deleted("start", lambda: vpn.start(host), "eth0", "wifi0")
        has_the_default(lab, vpn)
        decided_right(lab, vpn, "eth0", "wifi0")
        left_by(lab, journey.fresh(), "eth0", "wifi0")
        journey.moves("stop", lambda: host.run(vpn.down), "wifi0", families=(4,))
        deleted("another start", lambda: vpn.start(host), "eth0", "wifi0")
        journey.undisturbed("crash", lambda: host.run(vpn.crash), "eth0", "wifi0")
        left_by(lab, journey.fresh(), "eth0", "wifi0")


@pytest.mark.parametrize("vpn", REDIRECTING, ids=lambda vpn: vpn.name)
def test_connections_that_are_open_outlive_a_redirection_of_new_ones(lab: Lab, tmp_path: Path, vpn: Vpn) -> None:
    with beside(lab, tmp_path, vpn) as (host, journey):
        journey.undisturbed("start", lambda: vpn.start(host), "wifi0")
        has_the_default(lab, vpn)
        decided_right(lab, vpn, "wifi0")
        journey.undisturbed("stop", lambda: host.run(vpn.down), "wifi0")
        journey.undisturbed("another start", lambda: vpn.start(host), "wifi0")
        journey.undisturbed("crash", lambda: host.run(vpn.crash), "wifi0")


@pytest.mark.parametrize("vpn", cases((*REDIRECTING, *KILL_SWITCHES)))
def test_a_new_connection_that_a_firewall_takes_says_so(lab: Lab, tmp_path: Path, vpn: Vpn) -> None:
    with ready(lab, tmp_path, vpn) as host:
        vpn.start(host)
        is_refused(lab, "firewall")


@pytest.mark.parametrize("vpn", KILL_SWITCHES, ids=lambda vpn: vpn.name)
def test_a_kill_switch_is_obeyed(lab: Lab, tmp_path: Path, vpn: Vpn) -> None:
    with ready(lab, tmp_path, vpn) as host:
        vpn.start(host)
        has_the_default(lab, vpn)
        is_refused(lab)
