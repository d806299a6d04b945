"""Whatever happens during a race, and in whatever order: it does not wait on a path from which no answer can come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bindsock.dial.race import broken, gone
from bindsock.model.decision import pinned_to
from bindsock.testing import network
from tests.dial.test_race import AT_ONCE, ETHERNET, LATER, NEVER, WIFI, RaceScene, refused

_WIFI0, _ETH0 = "2: wifi0 wifi 192.0.2.5/24", "3: eth0 wifi 203.0.113.5/24"
_BY_WIFI, _BY_ETH = "default via 192.0.2.1 dev wifi0", "default via 203.0.113.1 dev eth0"
NETWORKS = {
    "wifi0": WIFI,
    "eth0": ETHERNET,
    "only wifi0": network(_WIFI0, _BY_WIFI),
    "only eth0": network(_ETH0, _BY_ETH),
    "no carrier": network(f"{_WIFI0} no-carrier", _ETH0, _BY_ETH),
    "another address": network("2: wifi0 wifi 192.0.2.6/24", _ETH0, _BY_ETH),
    "nothing": network(),
}
STEPS = st.one_of(
    st.sampled_from(sorted(NETWORKS)).map(lambda name: ("change", name)),
    st.sampled_from([("read by another", ""), ("wait", "")]),
    st.sampled_from(["0", "1"]).flatmap(lambda which: st.sampled_from([("connect", which), ("refuse", which)])),
)


@given(
    begins=st.lists(st.sampled_from([AT_ONCE, LATER, NEVER]), min_size=1, max_size=2),
    before=st.sampled_from([None, *sorted(NETWORKS)]),
    interruptible=st.booleans(),
    steps=st.lists(STEPS, max_size=8),
)
def test_a_race_never_waits_in_vain(
    begins: list[str], before: str | None, interruptible: bool, steps: list[tuple[str, str]]
) -> None:
    scene = RaceScene(*begins)
    if before is not None:
        scene.kernel.change(NETWORKS[before])
        scene.watcher.refresh()
    scene.start(interruptible=interruptible)
    scene.loop.advance(0.01)
    for step, what in steps:
        if scene.task.done:
            break
        match step:
            case "change":
                scene.change(NETWORKS[what])
            case "read by another":
                scene.watcher.refresh()
            case "wait":
                scene.loop.advance(0.3)
            case _:
                end(scene, int(what), refuses=step == "refuse")
        scene.loop.advance(0.01)
    if not scene.task.done:
        decider = scene.watcher.refresh()
        destinations = [attempt.destination for attempt in scene.attempts]
        changed = [broken(d.path, decider.with_pin(pinned_to(d.decision)).path(d.address)) for d in destinations]
        lost = all(changed) and all(gone(d.path, decider.network) for d in destinations)
        assert not (any(changed) if interruptible else lost)
        assert scene.open(), "it waits for an attempt"
        scene.task.cancel()
    assert scene.loop.writers == {}
    assert len(scene.open()) <= (0 if scene.race.interrupted else 1), "only the winner's socket stays open"
    for attempt in scene.attempts:
        attempt.close()
    scene.watcher.stop()


def end(scene: RaceScene, number: int, *, refuses: bool) -> None:
    """Let an attempt end, if it is connecting."""
    if number < len(scene.attempts):
        attempt = scene.attempts[number]
        if attempt.open and attempt.sock is not None and attempt.sock.fileno() in scene.loop.writers:
            attempt.end(refused(attempt.destination) if refuses else None)
