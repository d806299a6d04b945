"""What is asked about: connections, destinations and families, and nothing else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

import bindsock
from bindsock.testing import SimulatedKernel, network


@pytest.fixture
def factory() -> bindsock.TransportFactory:
    return bindsock.TransportFactory(kernel=SimulatedKernel(network()))


@pytest.mark.parametrize("wrong", [None, "wifi0", 3])
def test_only_a_connection_has_an_interface(factory: bindsock.TransportFactory, wrong: Any) -> None:
    for ask in (factory.interface_of, factory.multipath_of):
        with pytest.raises(TypeError, match="a transport, a stream writer or a socket is needed"):
            ask(wrong)


async def test_a_reader_does_not_know_its_connection(factory: bindsock.TransportFactory) -> None:
    reader: Any = asyncio.StreamReader()
    with pytest.raises(TypeError, match="a transport, a stream writer or a socket is needed, not <StreamReader"):
        factory.interface_of(reader)


async def test_the_socket_that_a_transport_shows_is_one(factory: bindsock.TransportFactory) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=ours)
        for connection in (writer, writer.transport, writer.get_extra_info("socket")):
            assert factory.interface_of(connection) is None
            assert not factory.multipath_of(connection).real
        writer.close()
        await writer.wait_closed()
        del reader


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda factory: factory.explain(None), TypeError, r"explain\(\) takes an address or a family, not None"),
        (lambda factory: factory.explain(99), ValueError, "the family must be AF_INET or AF_INET6, not 99"),
        (lambda factory: factory.effective_interface(99), ValueError, "the family must be AF_INET or AF_INET6, not 99"),
    ],
)
def test_other_families_and_things_have_no_decision(
    factory: bindsock.TransportFactory,
    ask: Callable[[bindsock.TransportFactory], object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        ask(factory)


def test_a_socket_of_another_family_cannot_be_bound_and_is_closed(factory: bindsock.TransportFactory) -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(ValueError, match="only AF_INET and AF_INET6 sockets can be bound to an interface"):
        factory.bind(ours, "192.0.2.1")
    assert ours.fileno() == -1


def test_the_modules_functions_ask_with_the_preferences_of_the_running_loop() -> None:
    kernel = SimulatedKernel(
        network(
            "wifi0 wifi 192.0.2.5/24",
            "wwan0 cellular 198.51.100.5/24",
            "default via 198.51.100.1 dev wwan0 metric 50",
            "default via 192.0.2.1 dev wifi0 metric 600",
        )
    )
    never = bindsock.Preferences(exclude=["wwan*"])

    async def ask() -> None:
        assert bindsock.effective_interface().name == "wifi0"
        assert bindsock.explain("203.0.113.9").interface == kernel.network().named("wifi0")
        with socket.socket() as sock:
            assert bindsock.bind(sock, "203.0.113.9").interface == kernel.network().named("wifi0")
        assert bindsock.effective_interface(kernel=kernel, preferences=bindsock.Preferences(cost="ignore")).name == "wwan0"

    with asyncio.Runner(loop_factory=bindsock.loop_factory(preferences=never, kernel=kernel)) as runner:
        runner.run(ask())
