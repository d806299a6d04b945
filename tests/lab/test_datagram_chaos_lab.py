"""Every datagram is accounted for while the network changes at random, at times without any uplink."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from bindsock.testing.lab import Lab
from tests.lab.stream_runner import Streaming

pytestmark = pytest.mark.lab

CHANGES = 40
LONGEST_PAUSE = 0.4
"""The maximum number of seconds between two changes."""


class Chaos:
    """Removes uplinks and restores them at random."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.random = random.Random(seed)
        self.done: list[str] = []
        self._undo: dict[str, Callable[[], object]] = {}

    def change(self) -> None:
        """Disturb one of the uplinks, or undo its last disturbance."""
        name = self.random.choice(list(self.lab.uplinks))
        undo = self._undo.pop(name, None)
        if undo is not None:
            self.done.append(f"restore {name}")
            undo()
            return
        lab = self.lab
        what = self.random.choice(("down", "carrier", "addresses", "delete", "default"))
        self.done.append(f"{what} {name}")
        if what == "down":
            lab.down(name)
            self._undo[name] = lambda: lab.up(name)
        elif what == "carrier":
            lab.carrier(name, False)
            self._undo[name] = lambda: lab.carrier(name, True)
        elif what == "addresses":
            lab.remove_addresses(name)
            self._undo[name] = lambda: lab.add_addresses(name)
        elif what == "delete":
            lab.delete(name)
            self._undo[name] = lambda: lab.create(name)
        else:
            lab.default(name)

    def restore(self) -> None:
        """Undo everything."""
        for name, undo in self._undo.items():
            self.done.append(f"restore {name}")
            undo()
        self._undo.clear()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])
def test_the_sum_of_what_was_sent_waits_or_is_lost_is_what_was_accepted(lab: Lab, loop_name: str, seed: int) -> None:
    chaos = Chaos(lab, seed)
    program = Streaming(lab, loop_name, rate=500)
    try:
        for _ in range(CHANGES):
            chaos.change()
            time.sleep(chaos.random.uniform(0.0, LONGEST_PAUSE))
        chaos.restore()
        outcome = program.finish()
    finally:
        program.kill()
    counted = outcome.statistics
    what = f"{chaos.done}: {outcome.told()}"
    assert sum(counted["lost_by"].values()) == counted["lost"], what
    assert sum(counted["sent"].values()) + counted["waiting"] + counted["lost"] == outcome.sent, what
    assert counted["sent"]["unbound"] == 0, what
    lost = counted["lost"] + counted["waiting"] + counted["lost_on_device"]
    assert len(outcome.missing) - outcome.missed <= lost, what
