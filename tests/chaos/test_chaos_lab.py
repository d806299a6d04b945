"""Short rounds of chaos, and the command that makes longer ones."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bindsock.testing.lab import available
from tests.chaos.__main__ import MODES
from tests.chaos.networks import DRAWN, NETWORKS, draw
from tests.waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.skipif(available(vpn=True) is not None, reason=str(available(vpn=True)))]

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.chaos", "--json", "--no-shrink", "--round-seconds", "3", "--interval", "0.05"]
SEEDS = range(1, 11)
OTHERS = {2: "three", 3: "shared", 5: "macvlan", 6: "nat64", 7: DRAWN, 8: "point-to-point"}
"""The network of a seed, unless it is the simplest one."""


def mode_of(seed: int) -> str:
    return MODES[seed % len(MODES)]


def network_of(seed: int) -> str:
    return OTHERS.get(seed, "two")


def short_round(seed: int, mode: str, network: str) -> dict[str, Any]:
    """Run a round in which nothing may fail. Returns its outcome."""
    command = [*COMMAND, "--seed", str(seed), "--round", "1", "--vpn", mode, "--network", network]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    outcome: dict[str, Any] = json.loads(done.stdout)
    assert [failed["texts"] for failed in outcome["failed"]] == [], done.stderr
    assert outcome["lasting"] == []
    assert outcome["rounds"] == 1
    assert [kind.partition(",")[0] for kind in outcome["by_kind"]] == [network]
    assert outcome["accepted"] > 100
    assert done.returncode == 0
    return outcome


def uplinks_of(seed: int, network: str) -> tuple[str, ...]:
    return (draw(f"{seed}/0") if network == DRAWN else NETWORKS[network]).uplinks


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed}-{mode_of(seed)}-{network_of(seed)}")
def test_in_a_short_round_nothing_fails(seed: int) -> None:
    network = network_of(seed)
    outcome = short_round(seed, mode_of(seed), network)
    assert any(interface in outcome["packets"] for interface in uplinks_of(seed, network))


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize("network", ["shared", "point-to-point", "macvlan", "nat64", DRAWN])
def test_in_a_short_round_with_other_uplinks_all_of_them_are_used(network: str) -> None:
    outcome = short_round(21, "metric", network)
    assert outcome["by_kind"][f"{network}, metric"]["rounds"] == 1
    assert all(interface in outcome["packets"] for interface in uplinks_of(21, network))


async def test_ctrl_c_ends_it_and_everything_that_it_started() -> None:
    command = [*COMMAND, "--seed", "3", "--minutes", "10", "--vpn", "metric"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("round 1"):
            assert process.poll() is None
        started = children(process.pid)
        process.send_signal(signal.SIGINT)
        output, complaints = process.communicate(timeout=60)
    assert process.returncode == 130, complaints
    assert json.loads(output)["settings"]["seed"] == 3
    assert "Traceback" not in complaints
    assert started
    # A process that Ctrl-C has caught as it was started ends at the end of its input, when the tool has ended.
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]
