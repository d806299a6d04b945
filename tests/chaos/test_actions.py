"""The actions that a seed determines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindsock.testing.lab import VpnMode
from tests.chaos.actions import BLOCKING, Action, Network, plan, with_end

UPLINKS = ("wifi0", "eth0", "wwan0")
MODES: Sequence[VpnMode | None] = (None, *get_args(VpnMode))


def test_a_seed_determines_the_actions() -> None:
    assert plan("7/1", UPLINKS, "metric", 20.0) == plan("7/1", UPLINKS, "metric", 20.0)
    assert plan("7/1", UPLINKS, "metric", 20.0) != plan("7/2", UPLINKS, "metric", 20.0)


def test_an_action_reads_like_a_line_of_a_log() -> None:
    assert str(Action(0.25, "renumber", "wifi0", "b")) == "+0.250 renumber wifi0 b"
    assert str(Action(1.0, "vpn-crash")) == "+1.000 vpn-crash"


def test_the_actions_take_as_long_as_is_asked_for() -> None:
    actions = plan("1", UPLINKS, None, 30.0)
    assert 28.0 < sum(action.pause for action in actions) <= 30.5


def test_in_a_minute_everything_happens_that_can() -> None:
    assert {action.verb for action in plan("1", UPLINKS, "metric", 60.0)} == {
        "down", "up", "unplug", "plug", "remove-addresses", "add-addresses", "renumber", "default", "metric",
        "delete", "create", "blackhole", "whitehole", "vpn-up", "vpn-down", "vpn-crash",
    }  # fmt: skip


@given(st.integers(), st.sampled_from(MODES), st.integers(0, 400))
def test_only_what_is_possible_happens(seed: int, mode: VpnMode | None, length: int) -> None:
    network = Network(UPLINKS, mode)
    for action in plan(str(seed), UPLINKS, mode, 5.0)[:length]:
        assert (action.verb, action.subject, action.value) in network.possible()
        network.apply(action)


@given(st.integers(), st.sampled_from(MODES), st.integers(0, 400))
def test_after_any_beginning_the_network_is_made_whole(seed: int, mode: VpnMode | None, length: int) -> None:
    network = Network(UPLINKS, mode)
    for action in with_end(plan(str(seed), UPLINKS, mode, 5.0)[:length], UPLINKS, mode):
        network.apply(action)
    for uplink in network.uplinks.values():
        assert uplink.routable
        assert uplink.plugged
        assert not uplink.blackholed
    assert network.vpn == (mode is not None and mode not in BLOCKING)


@pytest.mark.parametrize("mode", BLOCKING)
def test_a_vpn_that_blocks_and_crashed_is_started_and_ended_in_order(mode: VpnMode) -> None:
    crashed = [Action(0.0, "vpn-up", mode), Action(0.0, "vpn-crash")]
    assert [action.verb for action in with_end(crashed, UPLINKS, mode)[2:]] == ["vpn-up", "vpn-down"]
