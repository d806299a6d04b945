"""Recorded events: those that can change a decision are read, noise is ignored, and malformed data does no harm."""

from __future__ import annotations

import gc
import logging
import os
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindsock.kernel.darwin import DarwinKernel, abi
from bindsock.kernel.darwin.events import KernelEvents, RouteEvents, open_kernel_events, open_route_events
from bindsock.testing.darwin import SimulatedDarwin
from tests.darwin.golden import Queue, Replay, golden, states, transitions

STEPS = [(t["name"], number, step) for t in transitions() for number, step in enumerate(t["steps"])]

NOISE = (
    "join 239.1.2.3 on en0",
    "leave",
    "another program: RTM_GET 10.1.2.3",
    "another program: RTM_GET_SILENT 10.1.2.3",
    "RTM_GET without an answer",
    "RTM_GET_SILENT without an answer",
    "short write",
    "short write without privilege is echoed to every listener",
    "route add 0.0.0.0/0 via 203.0.113.1 -> ENETUNREACH",
    "route delete 0.0.0.0/0 via 192.168.1.1 -> 3",
    "route delete 0.0.0.0/0 via 192.168.1.1 dev en0 -> 3",
    "route add 10.0.0.0/8 via 192.168.1.1 dev en0 -> EEXIST",
    "route add 11.0.0.0/8 via 192.168.1.1 dev en0 -> EPERM",
    "RTM_GET_SILENT without privilege",
    "RTM_GET with SO_USELOOPBACK off",
    "RTM_GET_SILENT with SO_USELOOPBACK off",
)
"""Events that change no decision, but are read nevertheless."""


def sources_of(step: dict[str, Any]) -> tuple[RouteEvents, KernelEvents]:
    replay = Replay(states()[0])
    replay.route_queue = Queue([bytes.fromhex(message) for message in step["route"]])
    replay.event_queue = Queue([bytes.fromhex(message) for message in step["kev"]])
    return open_route_events(replay), open_kernel_events(replay)


@pytest.mark.parametrize(("name", "number", "step"), STEPS, ids=[f"{name}-{number}" for name, number, _ in STEPS])
def test_a_recorded_step_is_noticed_if_and_only_if_it_says_something(name: str, number: int, step: dict[str, Any]) -> None:
    route, events = sources_of(step)
    heard = bool(step["route"] or step["kev"])
    noticed = [route.drain(), events.drain()]
    assert any(noticed) == (heard and step["do"][0] not in NOISE)
    assert (route.drain(), events.drain()) == (False, False)
    route.close()
    events.close()


@pytest.mark.parametrize("source", [0, 1], ids=["route", "event"])
def test_each_source_notices_what_it_alone_is_told(source: int) -> None:
    step = next(s for s in transitions()[4]["steps"] if s["do"] == ["utun0 delegate -> en5"])
    if source == 0:
        step = next(s for s in transitions()[2]["steps"] if s["do"][0].startswith("route add 0.0.0.0/0"))
    sources = sources_of(step)
    assert [each.drain() for each in sources] == [source == 0, source == 1]
    for each in sources:
        each.close()


def test_what_anybody_can_inject_is_ignored() -> None:
    junk = [
        b"",
        b"\0",
        bytes(20),
        bytes.fromhex("080005047a7a7a7a"),
        bytes.fromhex("080005017a7a7a7a"),
        struct.pack("<HBBHxxii", 92, 5, abi.RTM_ADD, 3, abi.RTF_UP, 7)[:40],
        struct.pack("<HBBHxxii", 92, 5, abi.RTM_MISS, 3, abi.RTF_UP, 7).ljust(92, b"\0"),
        struct.pack("<HBBHxxii", 92, 4, abi.RTM_ADD, 3, abi.RTF_UP, 7).ljust(92, b"\0"),
        struct.pack("<HBBHxxii", 0, 5, abi.RTM_ADD, 3, abi.RTF_UP, 7).ljust(92, b"\0"),
        b"\xff" * 4096,
    ]
    for case in golden()["edge_cases"]["rtm_get"]:
        junk += [bytes.fromhex(message) for message in case.get("other_listeners", ())]
    for message in junk:
        assert not RouteEvents.matters(message), message
    kernel_junk = (b"", bytes(20), bytes(48), b"\xff" * 48, struct.pack("<6I", 0, 1, 1, 2, 1, 20))
    assert not any(KernelEvents.matters(message) for message in kernel_junk)


def test_neighbours_coming_and_going_are_no_events() -> None:
    for flags in (abi.RTF_LLINFO, abi.RTF_WASCLONED, abi.RTF_LLINFO | abi.RTF_WASCLONED):
        header = abi.rt_msghdr(92, abi.RTM_VERSION, abi.RTM_ADD, 3, abi.RTF_UP | abi.RTF_HOST | flags)
        assert not RouteEvents.matters(bytes(header))
    assert RouteEvents.matters(bytes(abi.rt_msghdr(92, abi.RTM_VERSION, abi.RTM_ADD, 3, abi.RTF_UP | abi.RTF_HOST)))


def test_a_second_event_in_one_record_is_seen() -> None:
    noise = struct.pack("<6I", 24, 1, 1, abi.KEV_DL_SUBCLASS, 1, abi.KEV_DL_LINK_QUALITY_METRIC_CHANGED)
    change = struct.pack("<6I", 24, 1, 1, abi.KEV_DL_SUBCLASS, 2, abi.KEV_DL_IFDELEGATE_CHANGED)
    assert not KernelEvents.matters(noise * 3)
    assert KernelEvents.matters(noise + change)


ROUTE_MESSAGES = [bytes.fromhex(message) for _, _, step in STEPS for message in step["route"]]
KERNEL_MESSAGES = [bytes.fromhex(message) for _, _, step in STEPS for message in step["kev"]]


@st.composite
def mutated(draw: st.DrawFn, messages: list[bytes]) -> bytes:
    """A recorded message with some bytes changed, cut off or added."""
    message = bytearray(draw(st.sampled_from(messages)))
    for _ in range(draw(st.integers(0, 4))):
        if message:
            message[draw(st.integers(0, len(message) - 1))] = draw(st.integers(0, 255))
    del message[draw(st.integers(0, len(message))) :]
    return bytes(message) + draw(st.binary(max_size=16))


@settings(max_examples=200)
@given(mutated(ROUTE_MESSAGES), mutated(KERNEL_MESSAGES), st.binary(max_size=64))
def test_no_message_can_make_the_drain_raise(route: bytes, event: bytes, junk: bytes) -> None:
    assert RouteEvents.matters(route) in (False, True)
    assert KernelEvents.matters(event) in (False, True)
    assert RouteEvents.matters(junk) in (False, True)
    assert KernelEvents.matters(junk) in (False, True)


def test_a_buffer_found_full_counts_as_an_overrun() -> None:
    replay = Replay(states()[0])
    question = next(m for m in ROUTE_MESSAGES if m[3] == abi.RTM_GET and len(m) > 92)
    replay.route_queue = Queue([question] * 900)
    source = open_route_events(replay)
    assert source.drain()
    assert source.overruns == 1
    assert not source.drain()
    assert source.overruns == 1
    source.close()


def test_the_sources_are_opened_as_they_must_be() -> None:
    replay = Replay(states()[0])
    replay.route_queue, replay.event_queue = Queue(), Queue()
    sources = DarwinKernel(replay).events()
    assert [source.fileno() for source in sources] == [replay.route_queue.fileno(), replay.event_queue.fileno()]
    assert (abi.SOL_SOCKET, abi.SO_RCVBUF, 262144) in replay.route_queue.options
    assert replay.event_queue.ioctls == [(0x800C6502, struct.pack("<3I", 1, 1, 0))]
    for source in sources:
        source.close()
        source.close()
        assert source.fileno() == -1


@pytest.mark.parametrize("denied", ["route", "event"])
def test_a_sandbox_that_denies_one_source_leaves_the_other_and_says_so_once(
    denied: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine = SimulatedDarwin()
    machine.denied.add(denied)
    kernel = machine.kernel()
    with caplog.at_level(logging.WARNING, "bindsock"):
        for _ in range(2):
            (source,) = kernel.events()
            source.close()
    assert len(caplog.records) == 1
    assert ("PF_ROUTE" in caplog.text) == (denied == "route")


def test_a_sandbox_that_denies_both_sources_is_an_error() -> None:
    machine = SimulatedDarwin()
    machine.denied |= {"route", "event"}
    with pytest.raises(OSError, match="EPERM") as raised:
        machine.kernel().events()
    assert raised.value.errno == abi.EPERM


def test_a_refused_filter_leaves_no_descriptor_open() -> None:
    class Refusing(Queue):
        def ioctl(self, request: int, argument: bytes, /) -> bytes:
            raise OSError(abi.ENOTSUP, "no filters here")

    replay = Replay(states()[0])
    replay.event_queue = Refusing()
    with pytest.raises(OSError, match="no filters"):
        open_kernel_events(replay)
    assert replay.event_queue.fileno() == -1


def test_sources_that_are_forgotten_close_themselves() -> None:
    gc.collect()  # of other tests
    before = set(os.listdir("/dev/fd"))
    machine = SimulatedDarwin()
    sources = machine.kernel().events()
    assert len(set(os.listdir("/dev/fd"))) > len(before)
    del sources
    machine.listeners.clear()
    assert len(set(os.listdir("/dev/fd"))) == len(before)
