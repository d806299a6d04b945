"""The recorded changes of the VPN programs, replayed by iproute2: so their rules are tested where they are not installed."""

from __future__ import annotations

import asyncio

import pytest

from bindsock.testing.lab import Lab, available
from tests.integrations.tunnel import nothing_through_the_tunnel
from tests.vpn.checks import decided_right, has_the_default, is_refused, left_by
from tests.vpn.machine import missing
from tests.vpn.programs import KILL_SWITCHES, REDIRECTING, REPLACING, VPNS, WITHOUT_DEVICE, Vpn, cases
from tests.vpn.recorded import DIRECTORY, needed, replayed
from tests.vpn.traffic import Echoes, fresh

pytestmark = pytest.mark.lab


def requirements(vpn: Vpn) -> None:
    if (reason := available(vpn=True) or missing(*needed(vpn.name))) is not None:
        pytest.skip(reason)


def test_every_recording_is_of_a_program() -> None:
    names = {path.stem for path in DIRECTORY.iterdir()}
    assert names == {vpn.name for vpn in (*VPNS, *WITHOUT_DEVICE, *REPLACING, *REDIRECTING, *KILL_SWITCHES)}


@pytest.mark.parametrize("vpn", cases((*VPNS, *WITHOUT_DEVICE)))
def test_connections_leave_beneath_what_a_program_did(lab: Lab, vpn: Vpn) -> None:
    requirements(vpn)
    with replayed(vpn.name):
        if vpn.device:
            has_the_default(lab, vpn)
        decided_right(lab, vpn, "wifi0")
        with nothing_through_the_tunnel(lab, vpn.device or "-"):
            left_by(lab, asyncio.run(fresh(Echoes.of(lab.server))), "wifi0")


@pytest.mark.parametrize("vpn", cases(REPLACING))
def test_the_other_uplink_is_used_where_a_program_deleted_the_default_of_the_best(lab: Lab, vpn: Vpn) -> None:
    requirements(vpn)
    with replayed(vpn.name):
        has_the_default(lab, vpn)
        decided_right(lab, vpn, "eth0", "wifi0")
        with nothing_through_the_tunnel(lab, vpn.device):
            left_by(lab, asyncio.run(fresh(Echoes.of(lab.server))), "eth0", "wifi0")


@pytest.mark.parametrize("vpn", cases((*REDIRECTING, *KILL_SWITCHES)))
def test_a_connection_that_a_firewall_takes_says_so(lab: Lab, vpn: Vpn) -> None:
    requirements(vpn)
    with replayed(vpn.name):
        is_refused(lab, "firewall")


@pytest.mark.parametrize("vpn", KILL_SWITCHES, ids=lambda vpn: vpn.name)
def test_a_kill_switch_is_obeyed(lab: Lab, vpn: Vpn) -> None:
    requirements(vpn)
    with replayed(vpn.name):
        has_the_default(lab, vpn)
        is_refused(lab)
