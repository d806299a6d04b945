"""The simulated Darwin sends its listeners the recorded events of Apple's kernel, step by step, and ends in the same state."""

from __future__ import annotations

import contextlib
import re
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from bindsock.kernel.darwin import abi
from bindsock.kernel.darwin.events import open_kernel_events, open_route_events
from bindsock.kernel.darwin.messages import sockaddr
from bindsock.routing.effective import decide
from bindsock.testing.darwin import SimulatedDarwin
from tests.darwin.golden import State, golden, transitions
from tests.darwin.topology import from_state, perform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindsock.kernel.darwin.syscalls import SystemSocket

_AGEING = {(abi.KEV_ND6_SUBCLASS, 7), (abi.KEV_ND6_SUBCLASS, 10)}
"""Deprecated addresses and expired prefixes: a timer causes them, in a step that depends on chance."""

_GROUPS = (abi.RTM_NEWMADDR, abi.RTM_DELMADDR)

_UNANSWERED = "8.8.8.8"


def request(kind: int, destination: str, *, sequence: int = 1, length: int | None = None) -> bytes:
    body = sockaddr(ip_address(destination))
    size = 92 + len(body)
    return bytes(abi.rt_msghdr(length or size, abi.RTM_VERSION, kind, rtm_addrs=abi.RTA_DST, rtm_seq=sequence)) + body


class Replay:
    """Listens to the simulated kernel and repeats the recorder's actions."""

    def __init__(self, kernel: SimulatedDarwin) -> None:
        self.kernel = kernel
        self.route = kernel.route_socket()
        self.route.setsockopt(abi.SOL_SOCKET, abi.SO_RCVBUF, 262144)
        self.events = kernel.event_socket()
        self.events.ioctl(abi.SIOCSKEVFILT, bytes(abi.kev_request(1, 1, 0)))
        self.other = kernel.route_socket()

    def do(self, actions: Sequence[str]) -> None:
        for action in actions:
            with contextlib.suppress(OSError):
                if not self._ask(action):
                    perform(self.kernel, action)

    def _ask(self, action: str) -> bool:
        """Repeat the recorder's questions, which it asked on another routing socket."""
        silent = abi.RTM_GET_SILENT if "SILENT" in action else abi.RTM_GET
        if action.startswith("short write"):
            self.other.send(bytes.fromhex("080005047a7a7a7a") if "privilege" in action else bytes(20))
        elif re.fullmatch(r"RTM_GET(_SILENT)? with SO_USELOOPBACK off", action):
            self.other.setsockopt(abi.SOL_SOCKET, 0x40, 0)
            self.other.send(request(silent, "10.1.2.3"))
        elif re.fullmatch(r"RTM_GET(_SILENT)? without an answer", action):
            self.other.send(request(silent, _UNANSWERED))
        elif action.startswith(("another program: RTM_GET", "RTM_GET_SILENT without privilege")):
            self.other.send(request(silent, "10.1.2.3"))
        elif action.endswith("-> EPERM"):
            self.other.send(request(abi.RTM_ADD, "11.0.0.0"))
        else:
            return False
        return True

    def heard(self) -> tuple[list[bytes], list[bytes]]:
        return drained(self.route), drained(self.events)

    def close(self) -> None:
        for sock in (self.route, self.events, self.other):
            sock.close()


MakeReplay: TypeAlias = Callable[[State], Replay]


@pytest.fixture
def recording() -> Iterator[MakeReplay]:
    """A function that makes replays on a machine in a recorded state. They are closed at the end."""
    replays = []

    def make(state: State) -> Replay:
        replays.append(Replay(from_state(state)))
        return replays[-1]

    yield make
    for replay in replays:
        replay.close()


def drained(sock: SystemSocket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(sock.recv(4096))
        except BlockingIOError:
            return found


def route_kinds(messages: list[bytes]) -> Counter[tuple[int, int]]:
    """Count messages by type and errno, without multicast groups: their number depends on other members."""
    found: Counter[tuple[int, int]] = Counter()
    for message in messages:
        if len(message) < 92:
            kind = message[3] if int.from_bytes(message[:2], "little") == len(message) else -1
            found[kind, 0] += 1
        else:
            header = abi.rt_msghdr.from_buffer_copy(message)
            changes_a_route = header.rtm_type in (abi.RTM_ADD, abi.RTM_DELETE, abi.RTM_GET)
            found[header.rtm_type, header.rtm_errno if changes_a_route else 0] += 1
    for kind in _GROUPS:
        if found[kind, 0]:
            found[kind, 0] = 1
    return +found


def event_kinds(messages: list[bytes]) -> Counter[tuple[int, int]]:
    """Count events by subclass and code."""
    found: Counter[tuple[int, int]] = Counter()
    for message in messages:
        event = abi.kern_event_msg.from_buffer_copy(message)
        found[event.kev_subclass, event.event_code] += 1
    for ageing in _AGEING:
        found.pop(ageing, None)
    return found


@pytest.mark.parametrize("transition", [t for t in transitions() if t["name"] != "fast_flaps"], ids=lambda t: t["name"])
def test_every_step_is_told_as_recorded(transition: dict[str, Any], recording: MakeReplay) -> None:
    replay = recording(transition["before"])
    if transition["name"] == "noise":
        # The recorder's machine could not reach 8.8.8.8, and had a route to 10/8.
        assert replay.kernel.state.lookup(ip_address(_UNANSWERED)) is None
    for step in transition["steps"]:
        replay.do(step["do"])
        route, events = replay.heard()
        assert route_kinds(route) == route_kinds([bytes.fromhex(m) for m in step["route"]]), step["do"]
        assert event_kinds(events) == event_kinds([bytes.fromhex(m) for m in step["kev"]]), step["do"]


@pytest.mark.parametrize("transition", [t for t in transitions() if t["name"] != "fast_flaps"], ids=lambda t: t["name"])
def test_every_transition_ends_as_recorded(transition: dict[str, Any], recording: MakeReplay) -> None:
    replay = recording(transition["before"])
    for step in transition["steps"]:
        replay.do(step["do"])
        if "state" in step:
            check(replay.kernel, step["state"])
    check(replay.kernel, transition["after"])


def check(kernel: SimulatedDarwin, state: dict[str, Any]) -> None:
    network = kernel.kernel().network()
    assert list(network.interfaces) == [recorded["index"] for recorded in state["interfaces"]]
    for interface in state["interfaces"]:
        mine = network.interfaces[interface["index"]]
        assert (mine.name, mine.delegate or 0) == (interface["name"], interface["delegate"])
    for name, family in (("inet", socket.AF_INET), ("inet6", socket.AF_INET6)):
        expected = state["expected"][name]
        decision = decide(network, family)
        found = decision.interface.name if decision.interface is not None else None
        assert found in (expected["effective"], *expected.get("acceptable", ()))
        assert list(decision.tunnels) == expected["tunnels"]


def test_fast_flaps_overflow_a_default_buffer_as_recorded(recording: MakeReplay) -> None:
    transition = next(t for t in transitions() if t["name"] == "fast_flaps")
    summary = transition["steps"][0]["summary"]
    replay = recording(transition["before"])
    for _ in range(50):
        replay.do(
            [
                "link off en0",
                "route delete 0.0.0.0/0 via 192.168.1.1 dev en0",
                "link on en0",
                "route add 0.0.0.0/0 via 192.168.1.1 dev en0",
            ]
        )
    small = drained(replay.other)
    route, events = replay.heard()
    assert len(route) == summary["route_256k"]["messages"]
    assert len(small) == summary["route_default_buffer"]["messages"]
    assert small == route[: len(small)]
    assert len(events) == summary["kev_256k"]["messages"]


def test_recorded_questions_get_the_recorded_errors() -> None:
    kernel = from_state(transitions()[0]["before"])
    tried = 0
    for case in golden()["edge_cases"]["rtm_get"]:
        if case["what"] not in ("plain", "rtm_msglen one too large", "rtm_msglen one too small", "version 4", "91 bytes"):
            continue
        sock = kernel.route_socket()
        errno = 0
        try:
            sock.send(bytes.fromhex(case["request"]))
        except OSError as error:
            errno = error.errno or -1
        assert errno == case["errno"], case["what"]
        sock.close()
        tried += 1
    assert tried >= 8


def test_a_delegate_that_is_set_again_is_no_event() -> None:
    kernel = SimulatedDarwin()
    kernel.add_interface("en0")
    kernel.add_interface("utun0", "tunnel")
    source = open_kernel_events(kernel)
    kernel.set_delegate("utun0", "en0")
    assert source.drain()
    kernel.set_delegate("utun0", "en0")
    assert not source.drain()
    kernel.set_delegate("utun0", None)
    assert source.drain()
    source.close()


def test_delegates_cannot_go_round_in_a_circle() -> None:
    kernel = SimulatedDarwin()
    for name in ("utun0", "utun1"):
        kernel.add_interface(name, "tunnel")
    kernel.set_delegate("utun0", "utun1")
    kernel.set_delegate("utun1", "utun0")
    assert kernel.state.named("utun1").delegate == 0


def test_a_descriptor_is_readable_while_a_message_waits() -> None:
    kernel = SimulatedDarwin()
    source = open_route_events(kernel)
    assert select.select([source.fileno()], [], [], 0)[0] == []
    kernel.add_interface("en0")
    kernel.add_interface("en1")
    assert select.select([source.fileno()], [], [], 0)[0] == [source.fileno()]
    assert source.drain()
    assert select.select([source.fileno()], [], [], 0)[0] == []
    source.close()
