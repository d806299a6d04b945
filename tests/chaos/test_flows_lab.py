"""The conversations of chaos."""

from __future__ import annotations

import asyncio

import pytest

from bindsock.testing.lab import Lab
from tests.chaos.flows import Churn, Datagrams, Stream
from tests.chaos.program import descriptors
from tests.waiting import until

pytestmark = pytest.mark.lab


async def test_a_conversation_tells_from_which_port_it_dials(lab: Lab) -> None:
    lab.blackhole("wifi0", True)
    flow = Stream("tcp-4", "program.tcp-4", (lab.server.ipv4, lab.server.tcp_port), interval=0.1)
    assert flow.waiting_ports() == []
    flow.start()
    await until(lambda: bool(flow.waiting_ports()), seconds=20)
    [port] = flow.waiting_ports()
    assert port >= 1024
    assert flow.state.startswith("dialling")
    await flow.stop()
    await asyncio.sleep(0)
    assert flow.waiting_ports() == []


async def test_a_conversation_that_is_stopped_while_it_cancels_a_dial_leaves_no_connection(lab: Lab) -> None:
    flow = Churn("churn-4", "program", (lab.server.ipv4, lab.server.tcp_port), interval=0.1)
    await flow._by_cancelled_dial()  # it opens what stays open: the event sources
    before = descriptors()
    for turns in range(100):
        stopping = asyncio.get_running_loop().create_task(flow._by_cancelled_dial())
        for _ in range(turns):
            await asyncio.sleep(0)
        stopping.cancel()
        await asyncio.wait([stopping])
    await until(lambda: descriptors() <= before, seconds=20)


async def test_a_conversation_by_datagrams_tells_its_port(lab: Lab) -> None:
    flow = Datagrams("udp-6", "program", (lab.server.ipv6, lab.server.udp_port), connected=False, interval=0.1)
    assert flow.waiting_ports() == []
    flow.start()
    await until(lambda: flow.progress, seconds=20)
    assert flow.waiting_ports() == [lab.datagrams()[0].source_port]
    await flow.stop()
