"""A partial reading leads to the decisions of a complete one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bindsock import TransportFactory
from bindsock.kernel.linux import LinuxKernel
from bindsock.kernel.linux.netlink import Channel, Message
from bindsock.kernel.linux.rtnetlink import links, neighbours, routes
from bindsock.model.network import FAMILIES, Network
from bindsock.netmon.coalescing import QUIET
from bindsock.routing.effective import Decider
from bindsock.testing.lab import Lab, VpnMode

pytestmark = pytest.mark.lab

MODES: tuple[VpnMode | None, ...] = (None, "metric", "halves", "policy", "policy-kill", "replace")


def chosen(network: Network) -> list[object]:
    decider = Decider(network)
    return [decider.path(family) for family in FAMILIES]


@pytest.fixture(params=MODES, ids=str)
def mode(request: pytest.FixtureRequest) -> VpnMode | None:
    found: VpnMode | None = request.param
    return found


def happenings(lab: Lab, mode: VpnMode | None) -> list[Callable[[], object]]:
    return [
        lambda: lab.default("eth0"),
        lambda: lab.metric("wifi0", 50),
        lambda: lab.down("wifi0"),
        lambda: lab.up("wifi0"),
        lambda: lab.remove_addresses("eth0"),
        lambda: lab.add_addresses("eth0"),
        lambda: lab.renumber("eth0", "b"),
        lambda: lab.delete("wifi0"),
        lambda: lab.create("wifi0"),
        lambda: lab.vpn_down() if mode else lab.vpn_up("metric"),
    ]


def test_a_partial_reading_decides_as_a_complete_one_does(lab: Lab, mode: VpnMode | None) -> None:
    if mode is not None:
        lab.vpn_up(mode)
    kernel = LinuxKernel()
    (source,) = kernel.events()
    try:
        kernel.network()
        for happen in happenings(lab, mode):
            happen()
            lab.wait_until_running("eth0")
            source.drain()  # in "replace" mode the event is a route to the VPN's server, which concerns no socket
            for _ in range(100):
                partial, complete = kernel.network(partial=True), LinuxKernel().network()
                if not source.drain():  # a late event, of an IPv6 address for example, leads to another reading
                    break
            assert chosen(partial) == chosen(complete)
            assert partial.interfaces == complete.interfaces
            assert partial.reachable == complete.reachable
            kernel.network()
    finally:
        source.close()
        kernel.close()


def test_a_partial_reading_is_equal_where_nothing_has_changed(lab: Lab, mode: VpnMode | None) -> None:
    if mode is not None:
        lab.vpn_up(mode)
    kernel = LinuxKernel()
    assert kernel.network() == kernel.network(partial=True) == kernel.network()
    kernel.close()


def test_interfaces_are_not_read_for_an_event_about_a_route(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = LinuxKernel()
    (source,) = kernel.events()
    asked: list[int] = []
    dump = kernel._channel.dump

    def counting(kind: int, body: bytes) -> list[bytes]:
        asked.append(kind)
        return dump(kind, body)

    monkeypatch.setattr(kernel._channel, "dump", counting)
    try:
        kernel.network()
        asked.clear()
        lab.default("eth0")
        source.drain()
        kernel.network(partial=True)
        assert asked == []
        lab.remove_addresses("eth0")
        source.drain()
        kernel.network(partial=True)
        assert asked == [links.RTM_GETLINK, links.RTM_GETADDR]
    finally:
        source.close()
        kernel.close()


def test_nothing_is_asked_when_an_interface_goes_down(lab: Lab, mode: VpnMode | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode is not None:
        lab.vpn_up(mode)
    kernel = LinuxKernel()
    (source,) = kernel.events()
    asked: list[int] = []
    exchange = kernel._channel._exchange

    def counting(kind: int, flags: int, body: bytes) -> list[Message]:
        asked.append(kind)
        return exchange(kind, flags, body)

    monkeypatch.setattr(kernel._channel, "_exchange", counting)
    try:
        lab.wait_until_running("wifi0")
        kernel.network()
        while source.drain():
            kernel.network()
        asked.clear()
        lab.down("wifi0")
        assert source.drain()
        assert source.urgent
        partial = kernel.network(partial=True)
        assert asked == []
        assert chosen(partial) == chosen(kernel.network())
        lab.down("eth0")
        lab.up("wifi0")
        source.drain()
        asked.clear()
        kernel.network(partial=True)
        assert links.RTM_GETLINK in asked
    finally:
        source.close()
        kernel.close()


def recording(method: Callable[..., Any], asked: list[int]) -> Callable[..., Any]:
    def record(channel: Channel, kind: int, question: object) -> Any:
        asked.append(kind)
        return method(channel, kind, question)

    return record


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("down", [neighbours.RTM_GETNEIGH]),
        # The default routes of both families, the way to the destination, and the first hop: one system call each.
        ("default", [routes.RTM_GETROUTE, routes.RTM_GETROUTE, neighbours.RTM_GETNEIGH]),
    ],
)
def test_between_an_event_and_a_move_as_few_questions_as_possible_are_asked(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, change: str, expected: list[int]
) -> None:
    asked: list[int] = []
    for name in ("ask", "ask_all", "dump"):
        monkeypatch.setattr(Channel, name, recording(getattr(Channel, name), asked))

    async def moved() -> list[int]:
        async with TransportFactory() as factory:
            remote = (lab.server.ipv4, lab.server.udp_port)
            by_eth0, _ = await factory.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=remote, interface="eth0")
            by_eth0.sendto(b"asks the gateway for its address")
            transport, _ = await factory.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=remote)
            await asyncio.sleep(2 * QUIET)
            by_eth0.abort()
            # The loop stands still meanwhile, and reads all events at once.
            lab.down("wifi0") if change == "down" else lab.default("eth0")
            asked.clear()
            while transport.get_extra_info("interface") != "eth0":
                await asyncio.sleep(0)
            found = list(asked)
            transport.abort()
            return found

    lab.wait_until_running("wifi0")
    lab.wait_until_running("eth0")
    assert asyncio.run(moved()) == expected
