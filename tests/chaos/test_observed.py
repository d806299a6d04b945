"""The faults that are found in the observations of a round."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.chaos.observed import FEWEST, Observed, failures, growth, left_behind, vanished


def report(**changes: Any) -> dict[str, Any]:
    statistics = {"sent": {"wifi0": 90, "unbound": 0}, "waiting": 4, "lost": 6, "lost_by": {"too old": 6}, "lost_on_device": 3}
    given = {
        "faults": [],
        "stuck": {},
        "accepted": 100,
        "descriptors": 30,
        "resting": 10,
        "opened": [],
        "resident": 30000,
        "tasks": [],
    }
    return given | {"statistics": statistics | changes.pop("statistics", {})} | changes


def observed(**changes: Any) -> Observed:
    good = Observed(
        actions=(), packets={}, wrong=(), unseen=0, left={("asyncio", "wifi0"): 85}, arrived={}, reports={"asyncio": report()}
    )
    return dataclasses.replace(good, **changes)


def test_a_good_round_has_no_failure() -> None:
    assert failures(observed()) == []


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (observed(wrong=("1.0 tun0 tcp",)), "a packet that should not have left: 1.0 tun0 tcp"),
        (observed(server_faults=("lost",)), "the server: lost"),
        (observed(complaints="Traceback\nValueError"), "standard error: ValueError"),
        (observed(reports={"asyncio": report(faults=["tcp-4: the end"])}), "asyncio: tcp-4: the end"),
        (
            observed(reports={"asyncio": report(stuck={"tcp-4": "dialling"})}),
            "asyncio: tcp-4 was not answered once the network was whole again (dialling)",
        ),
        (
            observed(reports={"asyncio": report(accepted=101)}),
            "asyncio: 101 datagrams were accepted, and 100 are counted: sent {'wifi0': 90, 'unbound': 0}, waiting 4, lost 6",
        ),
        (
            observed(reports={"asyncio": report(statistics={"lost_by": {"too old": 5}})}),
            "asyncio: 6 datagrams are lost, but by reason {'too old': 5}",
        ),
        (
            observed(reports={"asyncio": report(statistics={"sent": {"wifi0": 86, "unbound": 4}})}),
            "asyncio: 4 datagrams were sent unbound",
        ),
        (observed(left={("asyncio", "eth0"): 1}), "asyncio: 1 datagrams left by eth0, and 0 are counted"),
        (observed(network="host, ip neighbour:\n      none"), "the network at that time:\n    host, ip neighbour:\n      none"),
    ],
)
def test_each_failure_is_told(bad: Observed, text: str) -> None:
    assert text in failures(bad)


def test_what_left_is_not_compared_if_the_tap_missed_some() -> None:
    assert failures(observed(left={("asyncio", "eth0"): 1}, unseen=1)) == []


def test_what_was_sent_and_given_to_no_device_has_vanished() -> None:
    assert vanished(observed()) == {"asyncio": 90 - 85}


def test_what_programs_still_hold_at_the_end_is_told() -> None:
    assert left_behind({"asyncio": report(descriptors=10)}) == []
    opened = ["pipe:[1]", "AF_INET6 SOCK_STREAM 6"]
    assert left_behind({"asyncio": report(descriptors=12, opened=opened)}) == [
        "asyncio: 2 descriptors are left, of these: pipe:[1]; AF_INET6 SOCK_STREAM 6"
    ]
    assert left_behind({"asyncio": report(descriptors=10, tasks=["Task-1", "churn-4"])}) == ["asyncio: tasks are left: churn-4"]


def test_growth_is_told_from_what_comes_and_goes() -> None:
    swinging = [{"asyncio": report(resident=30000 + 9000 * (k % 2), descriptors=30 + 9 * (k % 2))} for k in range(FEWEST)]
    assert growth(swinging) == []
    growing = [{"asyncio": report(resident=30000 + 4000 * k, descriptors=30 + 3 * k)} for k in range(FEWEST)]
    assert growth(growing) == [
        "asyncio: resident grew from 38000 to 54000 in 9 rounds",
        "asyncio: descriptors grew from 36 to 48 in 9 rounds",
    ]
    assert growth(growing[: FEWEST - 1]) == []
