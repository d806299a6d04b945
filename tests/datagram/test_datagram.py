"""Datagram transports on a scripted network: real sockets over loopback, which are treated as remote."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import os
import socket
import warnings
import weakref
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio

from bindsock.datagram import backlog, first_hop, held_sockets
from bindsock.datagram import mover as moving
from bindsock.datagram import sender as sending
from bindsock.datagram.mover import DatagramMover, Endpoint
from bindsock.datagram.open import DatagramTransport, open_datagram
from bindsock.datagram.plan import Requirement
from bindsock.datagram.socket_spec import SocketSpec
from bindsock.errors import BindFailed, InterfaceChanged, NoEffectiveInterface, NoRoute
from bindsock.model.network import Interface, Network
from bindsock.netmon import turns
from bindsock.netmon.backoff import Retry
from bindsock.netmon.runtime import runtime_of
from bindsock.netmon.watcher import Watcher
from bindsock.routing.effective import Preferences
from bindsock.testing import SimulatedKernel, interface, network
from tests.waiting import until

FAR = ip_address("198.51.100.7")
WIFI = interface("2: wifi0 wifi 127.0.0.1/8")
WIFI_DOWN = interface("2: wifi0 wifi 127.0.0.1/8 down")
WIFI_UNPLUGGED = interface("2: wifi0 wifi 127.0.0.1/8 no-carrier")
WIFI_RENUMBERED = interface("2: wifi0 wifi 203.0.113.9/24")
WIFI_WITH_ANOTHER = interface("2: wifi0 wifi 127.0.0.1/8 203.0.113.9/24")
WIFI_AGAIN = interface("7: wifi0 wifi 127.0.0.1/8")
ETHERNET = interface("3: eth0 wifi 127.0.0.1/8")
BY_WIFI = "default via 127.0.0.254 dev wifi0 metric 600"
BY_ETHERNET = "default via 203.0.113.1 dev 3 metric 700"
BY_ETHERNET_FIRST = "default via 203.0.113.1 dev 3 metric 100"

BOTH = network(WIFI, ETHERNET, BY_WIFI, BY_ETHERNET)
ETHERNET_BETTER = network(WIFI, ETHERNET, BY_WIFI, BY_ETHERNET_FIRST)
ETHERNET_ONLY = network(WIFI_DOWN, ETHERNET, BY_ETHERNET)
UNPLUGGED = network(WIFI_UNPLUGGED, ETHERNET, BY_ETHERNET)
NOTHING = network(WIFI_DOWN)

CHANGES_NOTHING = {
    "another gateway": network(WIFI, ETHERNET, "default via 127.0.0.253 dev wifi0 metric 600", BY_ETHERNET),
    "another address beside it": network(WIFI_WITH_ANOTHER, ETHERNET, BY_WIFI, BY_ETHERNET),
    "a worse interface less": network(WIFI, BY_WIFI),
}
PATIENCE = 20.0


class ScriptedKernel(SimulatedKernel):
    """A simulated kernel that also decides whether a datagram can be sent."""

    def __init__(self, initial: Network) -> None:
        super().__init__(initial)
        self.carried: list[tuple[str, bytes]] = []
        """The datagrams sent, with their interfaces."""
        self.drops: dict[int, int] = defaultdict(int)
        self.no_room = 0
        """The number of sends that fail because the socket's buffer is full."""
        self.unreachable: set[tuple[Any, ...]] = set()
        self.routeless: set[str] = set()
        self.too_long: set[bytes] = set()
        self.intruders: list[bytes] = []
        """Datagrams of other senders, for the next reads."""
        self.reads = 0

    def carry(self, sock: socket.socket, data: bytes) -> bool:
        index = self.bound(sock)
        assert index is not None, "a datagram left unbound"
        if data in self.too_long:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        if self.no_room:
            self.no_room -= 1
            raise BlockingIOError(errno.EAGAIN, "no room")
        interface = self._network.interfaces.get(index)
        if interface is None or not interface.up or sock.getpeername() in self.unreachable:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        if not interface.running:
            self.drops[index] += 1
            return False
        self.carried.append((interface.name, data))
        return True

    def has_route(self, interface: Interface, destination: Any) -> bool:
        return interface.name not in self.routeless and super().has_route(interface, destination)

    def dropped(self, interface: Interface) -> int | None:
        return self.drops[interface.index]


class ScriptedSocket(socket.socket):
    """A socket that asks the scripted kernel before each send."""

    kernel: ScriptedKernel

    def send(self, data: Any, flags: int = 0, /) -> int:
        return super().send(data, flags) if self.kernel.carry(self, bytes(data)) else len(data)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        self.kernel.reads += 1
        if self.kernel.intruders:
            return self.kernel.intruders.pop(), ("127.0.0.66", 6666)
        return super().recvfrom(bufsize, flags)


@dataclass(frozen=True)
class FarEndpoint(SocketSpec):
    """An endpoint that is connected to loopback, with scripted sockets."""

    kernel: ScriptedKernel | None = None

    def make(self) -> socket.socket:
        sock = ScriptedSocket(self.family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        assert self.kernel is not None
        sock.kernel = self.kernel
        return sock


class RecordingProtocol(asyncio.DatagramProtocol):
    """A protocol that records its callbacks."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.errors: list[Exception] = []
        self.ends: list[Exception | None] = []
        self.flow: list[str] = []
        self.made = 0
        self.obstinate = False
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made += 1
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self.obstinate:
            raise ZeroDivisionError
        self.received.append(data)

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ends.append(exc)

    def pause_writing(self) -> None:
        self.flow.append("pause")

    def resume_writing(self) -> None:
        self.flow.append("resume")


class DatagramScene:
    """A watcher on a scripted network, and a peer on loopback that is treated as remote."""

    def __init__(self, initial: Network = BOTH, preferences: Preferences | None = None) -> None:
        self.kernel = ScriptedKernel(initial)
        self.loop = asyncio.get_running_loop()
        self.watcher = Watcher(self.kernel, preferences or Preferences(), runtime=runtime_of(self.loop))
        self.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.peer.bind(("127.0.0.1", 0))
        self.peer.setblocking(False)
        self.transports: list[DatagramTransport] = []

    @property
    def statistics(self) -> Any:
        return self.watcher.statistics

    def open(
        self, *, overlap: float = 60.0, pin: str | None = None, local: tuple[str, int] | None = None
    ) -> tuple[Any, RecordingProtocol]:
        """Open a transport as ``open_datagram`` does for a remote address that is not on loopback."""
        decider = self.watcher.refresh().with_pin(pin)
        spec = FarEndpoint(socket.AF_INET, 0, local, self.peer.getsockname(), kernel=self.kernel)
        requirement = Requirement((FAR,), spec.address)
        placement = requirement.first_placement(decider)
        assert placement.path is not None
        sock = spec.make()
        try:
            spec.bind_and_connect(sock, self.kernel, decider.network.interfaces[placement.path.index])
        except OSError:
            sock.close()
            raise
        mover = DatagramMover(self.watcher, Endpoint(requirement, spec, False, pin, overlap), sock, placement)
        protocol = RecordingProtocol()
        transport = DatagramTransport(runtime_of(self.loop), protocol, mover, self.statistics, remote=spec.remote)
        mover.start(transport, decider)
        self.transports.append(transport)
        return transport, protocol

    def open_at_a_port(self) -> tuple[Any, int]:
        """Open a transport that asks for a free port, beyond those that the system gives to others."""
        for port in range(20000, 30000):
            with contextlib.suppress(OSError):
                return self.open(local=("0.0.0.0", port))[0], port
        raise AssertionError("no port is free")

    async def change(self, new: Network) -> None:
        """Change the network, and wait until all transports have followed."""
        readings = self.kernel.readings
        self.kernel.change(new)
        await until(lambda: self.kernel.readings > readings)
        await turn()

    def change_now(self, new: Network) -> None:
        """Change the network, and let the transports that were used last follow before this returns."""
        self.kernel.change(new)
        self.watcher.refresh()

    def arrived(self) -> list[bytes]:
        """The datagrams that the peer has received since the last call."""
        received = []
        with contextlib.suppress(BlockingIOError):
            while True:
                received.append(self.peer.recv(65536))
        return received

    async def close(self) -> None:
        for transport in self.transports:
            transport.abort()
        await turn()
        self.peer.close()
        assert self.statistics.tracked == 0
        assert not self.watcher.running
        self.watcher.stop()
        assert self.kernel.open_sources == 0


def recorded_calls(kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the kernel from now on, with the names of their interfaces, and the datagrams that it carries."""
    calls: list[str] = []

    def record(name: str, position: int) -> None:
        method = getattr(kernel, name)

        def recording(*arguments: Any, **keywords: Any) -> Any:
            calls.append(f"{name} {arguments[position].name}" if position >= 0 else name)
            return method(*arguments, **keywords)

        monkeypatch.setattr(kernel, name, recording)

    def carry(sock: socket.socket, data: bytes) -> bool:
        carried = ScriptedKernel.carry(kernel, sock, data)
        calls.append(f"carry {kernel.carried[-1][0]}")
        return carried

    for name, position in {"network": -1, "first_hop_answers": 0, "has_route": 0, "dropped": 0, "bind": 1, "rebind": 1}.items():
        record(name, position)
    monkeypatch.setattr(kernel, "carry", carry)
    return calls


def socket_of(transport: DatagramTransport) -> socket.socket:
    """The current socket itself. ``get_extra_info("socket")`` would wrap it in a new object each time."""
    return transport._mover.sock


async def turn(times: int = 5) -> None:
    """Run the callbacks that are due."""
    for _ in range(times):
        await asyncio.sleep(0)


@pytest_asyncio.fixture
async def nothing_left() -> AsyncIterator[None]:
    """Fail if descriptors or tasks are left. It compares inside the loop: uvloop has its own descriptors while it runs, and opens
    two of them again, with other numbers, each time it continues."""
    await turn()
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    yield
    await turn()
    gc.collect()
    assert len(os.listdir("/dev/fd")) <= before
    assert asyncio.all_tasks() <= {asyncio.current_task()}


@pytest_asyncio.fixture
async def scene(nothing_left: None) -> AsyncIterator[DatagramScene]:
    scene = DatagramScene()
    yield scene
    await scene.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "FIRST_RETRY", 0.001)
    monkeypatch.setattr(first_hop, "_PROBE_INTERVAL", 3600.0)  # on a busy machine a second may pass at any time


async def test_it_is_a_datagram_transport_to_its_protocol(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    transport.sendto(b"there")
    await turn()
    assert (protocol.made, protocol.transport) == (1, transport)
    assert scene.arrived() == [b"there"]
    scene.peer.sendto(b"back", transport.get_extra_info("sockname"))
    await until(lambda: protocol.received == [b"back"])
    assert isinstance(transport, asyncio.DatagramTransport)
    assert transport.get_protocol() is protocol
    other = RecordingProtocol()
    transport.set_protocol(other)
    scene.peer.sendto(b"again", transport.get_extra_info("sockname"))
    await until(lambda: other.received == [b"again"])


async def test_extra_information_is_read_live(scene: DatagramScene) -> None:
    transport, _ = scene.open()
    before = transport.get_extra_info("socket").fileno()
    assert transport.get_extra_info("interface") == "wifi0"
    assert transport.get_extra_info("peername") == scene.peer.getsockname()
    assert transport.get_extra_info("sockname")[0] == "127.0.0.1"
    assert transport.get_extra_info("compression", "none") == "none"
    await scene.change(ETHERNET_BETTER)
    after = transport.get_extra_info("socket")
    assert after.fileno() != before
    assert transport.get_extra_info("sockname") == after.getsockname()
    assert transport.get_extra_info("interface") == "eth0"


async def test_sendto_accepts_what_asyncios_does(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    peer = scene.peer.getsockname()
    for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"view"), b""):
        transport.sendto(data)
    transport.sendto(b"named", peer)
    assert scene.arrived() == [b"bytes", b"bytearray", b"view", b"", b"named"]
    with pytest.raises(TypeError, match="bytes-like"):
        transport.sendto("text")
    with pytest.raises(ValueError, match="Invalid address"):
        transport.sendto(b"elsewhere", ("127.0.0.1", peer[1] + 1))
    assert not protocol.errors


async def test_closing_ends_it_once(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    await turn()
    transport.close()
    transport.close()
    assert transport.is_closing()
    assert protocol.ends == []
    await turn()
    transport.abort()
    await turn()
    assert protocol.ends == [None]
    assert transport.get_extra_info("socket").fileno() == -1
    assert transport.get_extra_info("peername") == scene.peer.getsockname()
    transport.sendto(b"too late")
    assert scene.arrived() == []


async def test_an_exception_of_the_protocol_is_the_loops_business(scene: DatagramScene) -> None:
    told: list[Any] = []
    scene.loop.set_exception_handler(lambda loop, context: told.append(context["exception"]))
    transport, protocol = scene.open()
    protocol.obstinate = True
    await turn()
    scene.peer.sendto(b"x", transport.get_extra_info("sockname"))
    await until(lambda: told)
    assert isinstance(told[0], ZeroDivisionError)
    protocol.obstinate = False
    scene.peer.sendto(b"y", transport.get_extra_info("sockname"))
    await until(lambda: protocol.received == [b"y"])


async def test_an_unclosed_transport_warns_and_leaves_no_descriptor(nothing_left: None) -> None:
    scene = DatagramScene()
    transport, protocol = scene.open()
    await turn()
    gone = weakref.ref(transport)
    scene.watcher.forget_followers()
    transport._mover.stop()
    scene.transports.clear()
    scene.peer.close()
    del transport, protocol
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
    assert any("unclosed transport" in str(warning.message) for warning in caught)
    caught.clear()  # a warning keeps its source alive
    gc.collect()
    assert gone() is None
    scene.watcher.stop()


def test_a_loop_that_is_closed_by_hand_leaves_nothing(
    descriptors: Any, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    loop = loop_factory()

    async def program() -> None:
        scene = DatagramScene()
        scene.open()
        await turn()
        scene.peer.close()

    loop.run_until_complete(program())
    loop.close()
    gone = weakref.ref(loop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del loop
        gc.collect()
    assert gone() is None


async def test_a_move_before_the_protocol_is_told_loses_no_replies_either(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    old = transport.get_extra_info("sockname")
    scene.kernel.silent = True
    scene.kernel.change(ETHERNET_BETTER)
    scene.watcher.recheck()
    assert transport.get_extra_info("interface") == "eth0"
    assert protocol.made == 0
    scene.peer.sendto(b"early", old)
    await until(lambda: protocol.received == [b"early"])


async def test_a_better_path_is_taken_at_once_and_replies_in_flight_are_received(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    old = transport.get_extra_info("sockname")
    transport.sendto(b"before")
    await scene.change(ETHERNET_BETTER)
    transport.sendto(b"after")
    assert scene.kernel.carried == [("wifi0", b"before"), ("eth0", b"after")]
    new = transport.get_extra_info("sockname")
    assert new != old
    scene.peer.sendto(b"to the old", old)
    scene.peer.sendto(b"to the new", new)
    await until(lambda: len(protocol.received) == 2)
    assert set(protocol.received) == {b"to the old", b"to the new"}
    assert scene.statistics.rebinds == 1


async def test_the_old_socket_is_closed_when_the_overlap_is_over_and_read_to_the_last(scene: DatagramScene) -> None:
    transport, protocol = scene.open(overlap=0.0)
    await turn()
    old = socket_of(transport)
    scene.peer.sendto(b"last words", transport.get_extra_info("sockname"))
    await scene.change(ETHERNET_BETTER)
    await until(lambda: old.fileno() == -1)
    assert protocol.received == [b"last words"]


async def test_the_old_socket_is_closed_when_its_interface_is_gone(scene: DatagramScene) -> None:
    transport, _ = scene.open()
    await turn()
    old = socket_of(transport)
    await scene.change(ETHERNET_BETTER)
    assert old.fileno() != -1
    await scene.change(ETHERNET_ONLY)
    assert old.fileno() == -1


async def test_coming_back_within_the_overlap_takes_the_old_socket_again(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    await turn()
    first = socket_of(transport)
    await scene.change(ETHERNET_BETTER)
    second = socket_of(transport)
    binds = list(scene.kernel.binds)
    await scene.change(BOTH)
    assert socket_of(transport) is first
    await scene.change(ETHERNET_BETTER)
    assert socket_of(transport) is second
    assert scene.kernel.binds == binds
    assert scene.statistics.rebinds == 3
    scene.peer.sendto(b"x", first.getsockname())
    await until(lambda: protocol.received == [b"x"])


async def test_no_more_than_a_few_old_sockets_are_kept(scene: DatagramScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_sockets, "MAX_HELD_SOCKETS", 2)
    transport, _ = scene.open()
    used = [socket_of(transport)]
    for index in range(10, 14):
        parts = [f"{i}: usb{i} wifi 127.0.0.1/8" for i in range(10, index + 1)]
        best = f"default via 127.0.0.254 dev usb{index} metric {50 - index}"
        await scene.change(network(WIFI, BY_WIFI, *parts, best))
        used.append(socket_of(transport))
    assert [sock.fileno() != -1 for sock in used] == [False, False, True, True, True]


async def test_an_endpoint_that_waits_for_its_turn_to_move_moves_when_it_is_sent_by(
    scene: DatagramScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "BUDGET", 1e-9)
    transports = [scene.open()[0] for _ in range(80)]
    scene.kernel.silent = True
    scene.kernel.change(ETHERNET_BETTER)
    scene.watcher.recheck()
    waiting = [transport for transport in transports if transport.get_extra_info("interface") == "wifi0"]
    assert waiting
    waiting[0].sendto(b"x")
    assert scene.kernel.carried == [("eth0", b"x")]
    assert waiting[-1].get_extra_info("interface") == "wifi0"
    await until(lambda: {transport.get_extra_info("interface") for transport in transports} == {"eth0"})
    assert scene.statistics.rebinds == 80


@pytest.mark.parametrize("dead", [ETHERNET_ONLY, UNPLUGGED, network(ETHERNET, BY_ETHERNET)], ids=["down", "unplugged", "deleted"])
async def test_from_a_dead_interface_it_moves_in_place(scene: DatagramScene, dead: Network) -> None:
    transport, protocol = scene.open()
    await turn()
    before = socket_of(transport), transport.get_extra_info("sockname")
    await scene.change(dead)
    assert (socket_of(transport), transport.get_extra_info("sockname")) == before
    assert scene.kernel.binds == [("bind", "wifi0"), ("rebind", "eth0")]
    transport.sendto(b"on")
    assert scene.kernel.carried == [("eth0", b"on")]
    assert scene.statistics.rebinds == 1
    assert not protocol.errors


@pytest.mark.parametrize("what", CHANGES_NOTHING)
async def test_it_stays_where_its_address_is(scene: DatagramScene, what: str) -> None:
    transport, _ = scene.open()
    await scene.change(CHANGES_NOTHING[what])
    transport.sendto(b"x")
    assert scene.kernel.binds == [("bind", "wifi0")]
    assert scene.kernel.carried == [("wifi0", b"x")]
    assert scene.statistics.rebinds == 0


async def test_a_renumbered_interface_needs_a_new_source(scene: DatagramScene) -> None:
    scene.open()
    ethernet = interface("3: eth0 wifi 127.0.0.2/8")
    # The system gives the test's socket a loopback address, whatever the simulated kernel binds it to.
    await scene.change(network(LOOPBACK, WIFI_RENUMBERED, ethernet, BY_WIFI, BY_ETHERNET))
    assert scene.kernel.binds == [("bind", "wifi0"), ("rebind", "wifi0")]


async def test_an_interface_that_was_created_again_is_another_one(scene: DatagramScene) -> None:
    transport, _ = scene.open()
    await scene.change(network(WIFI_AGAIN, "default via 127.0.0.254 dev wifi0"))
    assert scene.kernel.binds == [("bind", "wifi0"), ("rebind", "wifi0")]
    assert scene.kernel.bound(socket_of(transport)) == 7


async def test_where_binding_does_not_filter_a_socket_without_a_peer_moves_in_place(scene: DatagramScene) -> None:
    scene.kernel.binding_filters_ingress = False
    transport, _ = await open_datagram(scene.watcher, RecordingProtocol, family=socket.AF_INET)
    scene.transports.append(transport)
    await scene.change(ETHERNET_BETTER)
    assert scene.kernel.binds == [("bind", "wifi0"), ("rebind", "eth0")]


async def test_a_pin_stays_and_follows_its_name(scene: DatagramScene) -> None:
    transport, _ = scene.open(pin="wifi0")
    await scene.change(ETHERNET_BETTER)
    assert transport.get_extra_info("interface") == "wifi0"
    await scene.change(ETHERNET_ONLY)
    transport.sendto(b"held")
    assert scene.kernel.carried == []
    await scene.change(network(WIFI_AGAIN, ETHERNET, "default via 127.0.0.254 dev wifi0", BY_ETHERNET_FIRST))
    assert scene.kernel.carried == [("wifi0", b"held")]


async def test_options_and_the_port_go_along(scene: DatagramScene) -> None:
    transport, port = scene.open_at_a_port()
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
    size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    # On loopback both sockets are on one device, so the port is in use: the socket moves in place, and keeps its port.
    await scene.change(ETHERNET_BETTER)
    assert scene.kernel.binds[-1] == ("rebind", "eth0")
    assert transport.get_extra_info("sockname")[1] == port
    again = transport._mover._endpoint.spec.duplicate_on(socket_of(transport), scene.kernel, ETHERNET, [0])
    assert again.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size
    assert again.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0x10
    again.close()


async def test_a_local_address_is_a_pin_and_its_loss_the_end(scene: DatagramScene) -> None:
    transport, protocol = scene.open(local=("127.0.0.1", 0))
    await scene.change(ETHERNET_BETTER)
    assert transport.get_extra_info("interface") == "wifi0"
    moved = interface("2: wifi0 wifi 203.0.113.9/24")
    await scene.change(network(moved, BY_WIFI))
    (end,) = protocol.ends
    assert isinstance(end, InterfaceChanged)
    assert "127.0.0.1 is gone" in str(end)
    assert end.interface == "wifi0"


async def test_a_better_path_is_taken_when_its_first_hop_answers_and_until_then_the_old_one_is_used(scene: DatagramScene) -> None:
    transport, _ = scene.open()
    scene.kernel.hops["eth0"] = False
    await scene.change(ETHERNET_BETTER)
    transport.sendto(b"before")
    assert scene.kernel.asked_hops == ["eth0"]
    scene.kernel.hops["eth0"] = True
    await until(lambda: transport.get_extra_info("interface") == "eth0")
    transport.sendto(b"after")
    assert scene.kernel.carried == [("wifi0", b"before"), ("eth0", b"after")]
    assert scene.statistics.rebinds == 1


async def test_a_first_hop_that_never_answers_is_waited_for_no_longer_than_stated(
    scene: DatagramScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_of(scene.loop)
    now = runtime.time()
    monkeypatch.setattr(runtime, "time", lambda: now)
    transport, _ = scene.open()
    scene.kernel.hops["eth0"] = False
    await scene.change(ETHERNET_BETTER)
    assert transport.get_extra_info("interface") == "wifi0"
    now += first_hop.PATIENCE
    await until(lambda: transport.get_extra_info("interface") == "eth0")
    assert scene.kernel.asked_hops == ["eth0"]


async def test_a_path_that_dies_while_the_better_one_is_waited_for_is_left_at_once(scene: DatagramScene) -> None:
    transport, _ = scene.open()
    scene.kernel.hops["eth0"] = False
    await scene.change(ETHERNET_BETTER)
    transport.sendto(b"1")
    await scene.change(ETHERNET_ONLY)
    assert transport.get_extra_info("interface") == "eth0"
    transport.sendto(b"2")
    assert (scene.kernel.carried, scene.statistics.waiting) == ([("wifi0", b"1")], 1)
    scene.kernel.hops["eth0"] = True
    await until(lambda: scene.kernel.carried == [("wifi0", b"1"), ("eth0", b"2")])


async def test_a_path_whose_first_hop_answers_at_last_is_used_while_a_better_ones_is_silent(scene: DatagramScene) -> None:
    transport, _ = scene.open()
    scene.kernel.hops = {"wifi0": False, "eth0": False}
    await scene.change(ETHERNET_ONLY)
    transport.sendto(b"x")
    await scene.change(BOTH)
    assert (scene.kernel.carried, transport.get_extra_info("interface")) == ([], "eth0")
    scene.kernel.hops["eth0"] = True
    await until(lambda: scene.kernel.carried == [("eth0", b"x")])
    scene.kernel.hops["wifi0"] = True
    await until(lambda: transport.get_extra_info("interface") == "wifi0")


async def test_what_was_held_waits_until_the_first_hop_answers_again(scene: DatagramScene) -> None:
    transport, _ = scene.open()
    await scene.change(NOTHING)
    transport.sendto(b"x")
    scene.kernel.hops["wifi0"] = False
    await scene.change(BOTH)
    assert scene.kernel.carried == []
    scene.kernel.hops["wifi0"] = True
    await until(lambda: scene.kernel.carried == [("wifi0", b"x")])


async def test_a_first_hop_that_answers_while_it_is_asked_is_not_waited_for(
    scene: DatagramScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, _ = scene.open()
    scene.kernel.hops["eth0"] = False
    monkeypatch.setattr(scene.kernel, "ask_first_hop", lambda *_: scene.kernel.hops.update(eth0=True))
    scene.kernel.change(ETHERNET_BETTER)
    scene.watcher.refresh()
    assert transport.get_extra_info("interface") == "eth0"


async def test_many_endpoints_ask_for_one_first_hop_together(scene: DatagramScene) -> None:
    transports = [scene.open()[0] for _ in range(5)]
    scene.kernel.hops["eth0"] = False
    await scene.change(ETHERNET_BETTER)
    assert scene.kernel.asked_hops == ["eth0"]
    scene.kernel.hops["eth0"] = True
    await until(lambda: {transport.get_extra_info("interface") for transport in transports} == {"eth0"})


async def test_a_socket_of_ones_own_waits_for_a_better_paths_first_hop_too(scene: DatagramScene) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    transport, _ = await open_datagram(scene.watcher, RecordingProtocol, sock=sock)
    scene.transports.append(transport)
    scene.kernel.hops["eth0"] = False
    await scene.change(ETHERNET_BETTER)
    assert transport.get_extra_info("interface") == "wifi0"
    scene.kernel.hops["eth0"] = True
    await until(lambda: transport.get_extra_info("interface") == "eth0")
    assert transport.get_extra_info("socket").fileno() == sock.fileno()


async def test_refused_sends_are_held_and_leave_in_order_by_the_new_interface(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    scene.kernel.silent = True
    scene.kernel.change(ETHERNET_ONLY)
    for number in range(5):
        transport.sendto(b"%d" % number)
    assert transport.get_write_buffer_size() == 5
    # There is no event: the refusal itself makes the watcher read the network.
    await until(lambda: scene.statistics.rebinds == 1)
    transport.sendto(b"5")
    assert scene.kernel.carried == [("eth0", b"%d" % number) for number in range(6)]
    assert (scene.statistics.held, scene.statistics.lost) == (5, 0)
    assert not protocol.errors


async def test_without_any_interface_sends_wait_for_one(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    await scene.change(NOTHING)
    transport.sendto(b"patience")
    assert scene.kernel.carried == []
    await scene.change(BOTH)
    assert scene.kernel.carried == [("wifi0", b"patience")]
    assert scene.kernel.binds == [("bind", "wifi0")]
    assert not protocol.errors


async def test_what_waits_too_long_is_lost_and_told_once(scene: DatagramScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "HELD_FOR", 0.01)
    transport, protocol = scene.open()
    await scene.change(NOTHING)
    transport.sendto(b"a")
    transport.sendto(b"b")
    await until(lambda: scene.statistics.lost == 2)
    transport.sendto(b"c")
    await until(lambda: scene.statistics.lost == 3)
    (error,) = protocol.errors
    assert isinstance(error, InterfaceChanged)
    assert error.interface == "wifi0"
    assert not transport.is_closing()
    await scene.change(BOTH)
    transport.sendto(b"d")
    assert scene.kernel.carried == [("wifi0", b"d")]


async def test_what_is_held_is_bounded_and_the_oldest_goes_first(scene: DatagramScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MAX_HELD", 3)
    transport, _ = scene.open()
    await scene.change(NOTHING)
    for number in range(5):
        transport.sendto(b"%d" % number)
    assert scene.statistics.lost == 2
    await scene.change(BOTH)
    assert [data for _, data in scene.kernel.carried] == [b"2", b"3", b"4"]


async def test_a_refusal_on_an_intact_path_is_told_as_asyncio_tells_it(
    scene: DatagramScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "DOUBTED_FOR", 0.01)
    transport, protocol = scene.open()
    scene.kernel.unreachable.add(scene.peer.getsockname())
    transport.sendto(b"first")
    assert protocol.errors == []
    await until(lambda: protocol.errors)
    transport.sendto(b"second")
    assert [error.errno for error in protocol.errors] == [errno.ENETUNREACH] * 2  # type: ignore[attr-defined]
    assert transport.get_write_buffer_size() == 0
    scene.kernel.unreachable.clear()
    transport.sendto(b"third")
    assert scene.arrived() == [b"third"]


async def test_a_refusal_is_not_the_destinations_fault_while_changes_wait_to_be_read(
    scene: DatagramScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "DOUBTED_FOR", 0.01)
    transport, protocol = scene.open()
    await turn()
    others = itertools.cycle(CHANGES_NOTHING.values())
    while not scene.statistics.coalesced:
        scene.change_now(next(others))
    scene.kernel.change(ETHERNET_ONLY)
    transport.sendto(b"patience")
    await until(lambda: scene.kernel.carried or scene.statistics.lost)
    assert (scene.kernel.carried, scene.statistics.lost, protocol.errors) == ([("eth0", b"patience")], 0, [])


async def test_a_peers_refusal_is_told_and_does_not_cost_a_datagram(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    await turn()
    peer = scene.peer.getsockname()
    scene.peer.close()
    transport.sendto(b"into the void")
    await until(lambda: protocol.errors)
    assert isinstance(protocol.errors[0], ConnectionRefusedError)
    scene.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    scene.peer.bind(peer)
    scene.peer.setblocking(False)
    transport.sendto(b"heard")
    assert scene.arrived() == [b"heard"]
    assert (scene.statistics.held, scene.statistics.lost) == (0, 0)


async def test_closing_sends_what_waits_first(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    await scene.change(NOTHING)
    transport.sendto(b"the will")
    transport.close()
    await turn()
    assert protocol.ends == []
    await scene.change(ETHERNET_ONLY)
    assert scene.kernel.carried == [("eth0", b"the will")]
    await turn()
    assert protocol.ends == [None]


async def test_aborting_loses_what_waits(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    await scene.change(NOTHING)
    transport.sendto(b"x")
    transport.abort()
    await turn()
    assert protocol.ends == [None]
    assert scene.statistics.lost == 1


async def test_what_a_device_swallowed_when_its_carrier_went_is_counted(scene: DatagramScene) -> None:
    transport, _ = scene.open()
    for _ in range(4):
        transport.sendto(b"arrives")
    scene.kernel.silent = True
    scene.kernel.change(UNPLUGGED)
    for _ in range(3):
        transport.sendto(b"vanishes")
    scene.kernel.signal()
    await until(lambda: scene.statistics.rebinds == 1)
    transport.sendto(b"arrives")
    assert len(scene.arrived()) == 5
    assert scene.statistics.lost_on_device == 3


@pytest.mark.parametrize("end", [DatagramTransport.abort, DatagramTransport.close, None])
async def test_a_fresh_socket_is_read_unless_the_transport_ends_before(
    scene: DatagramScene, end: Callable[[DatagramTransport], None] | None
) -> None:
    failures: list[dict[str, Any]] = []
    scene.loop.set_exception_handler(lambda loop, context: failures.append(context))
    transport, protocol = scene.open()
    await turn()
    scene.change_now(ETHERNET_BETTER)
    sock = socket_of(transport)
    address = sock.getsockname()
    scene.peer.sendto(b"answer", address)
    if end is not None:
        end(transport)
        await turn()
        assert sock.fileno() == -1
    else:
        await until(lambda: protocol.received == [b"answer"])
    assert failures == []


# On loopback, both sockets have the same address, so the second one has to try another port.
@pytest.mark.parametrize(("after", "moves"), [(ETHERNET_ONLY, ["rebind eth0"]), (ETHERNET_BETTER, ["bind eth0", "bind eth0"])])
async def test_before_the_first_datagram_the_kernel_is_asked_only_what_it_needs(
    scene: DatagramScene, monkeypatch: pytest.MonkeyPatch, after: Network, moves: list[str]
) -> None:
    transport, _ = scene.open()
    await turn()
    transport.sendto(b"before")
    calls = recorded_calls(scene.kernel, monkeypatch)
    scene.kernel.change(after)
    if after is ETHERNET_ONLY:
        transport.sendto(b"held")  # refused
    while "carry eth0" not in calls:
        await asyncio.sleep(0)
        transport.sendto(b"more")
    first = calls.index("carry eth0")
    asked = [call for call in calls[:first] if not call.endswith(" wifi0")]
    # The counter of the new device before its first datagram; what the old one has dropped can wait.
    assert asked == ["network", "first_hop_answers eth0", "has_route eth0", *moves, "dropped eth0"]
    assert "dropped wifi0" not in calls[:first]


async def test_no_more_is_counted_than_was_sent_and_every_drop_once(scene: DatagramScene) -> None:
    transport, _ = scene.open()
    other, _ = scene.open()
    silent, _ = scene.open()
    scene.kernel.silent = True
    scene.kernel.change(UNPLUGGED)
    transport.sendto(b"1")
    other.sendto(b"2")
    other.sendto(b"3")
    scene.kernel.drops[WIFI.index] += 10
    del silent
    scene.kernel.signal()
    await until(lambda: scene.statistics.rebinds == 3)
    assert scene.statistics.lost_on_device == 3


def answered_for(scene: DatagramScene) -> int:
    """The number of datagrams in the statistics."""
    statistics = scene.statistics
    assert sum(statistics.lost_by.values()) == statistics.lost
    assert len(scene.kernel.carried) == sum(statistics.sent.values())
    return int(sum(statistics.sent.values()) + statistics.waiting + statistics.lost)


async def test_every_datagram_is_sent_by_a_named_interface_or_waits_or_is_lost_for_a_reason(
    scene: DatagramScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "HELD_FOR", 0.01)
    transport, _ = scene.open()
    other, _ = scene.open()
    transport.sendto(b"by wifi0")
    await scene.change(ETHERNET_BETTER)
    transport.sendto(b"by eth0")
    assert scene.statistics.sent == {"unbound": 0, "wifi0": 1, "eth0": 1}
    scene.kernel.too_long = {b"far too long"}
    transport.sendto(b"far too long")
    assert scene.statistics.lost_by == {"refused": 1}
    await scene.change(NOTHING)
    transport.sendto(b"held for too long")
    other.sendto(b"held until it is closed")
    assert scene.statistics.waiting == 2
    other.abort()
    await until(lambda: scene.statistics.waiting == 0)
    transport.abort()
    transport.sendto(b"after the end")
    assert scene.statistics.lost_by == {"refused": 1, "closed": 2, "too old": 1}
    assert answered_for(scene) == 6


async def test_what_has_no_room_waits_and_is_lost_when_the_transport_is_aborted(scene: DatagramScene) -> None:
    transport, _ = scene.open()
    scene.kernel.no_room = 10**6
    for _ in range(3):
        transport.sendto(b"x")
    assert (scene.statistics.waiting, answered_for(scene)) == (3, 3)
    transport.abort()
    assert (scene.statistics.waiting, scene.statistics.lost_by) == (0, {"closed": 3})


async def test_what_was_held_is_sent_at_a_stated_rate_the_oldest_first(
    scene: DatagramScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[Callable[[], object]] = []
    runtime = runtime_of(scene.loop)
    call_later = runtime.call_later

    def by_hand(delay: float, callback: Callable[..., object], *args: Any) -> Any:
        if delay == sending.TURN:
            turns.append(callback)
            return call_later(3600.0, callback)
        return call_later(delay, callback, *args)

    monkeypatch.setattr(runtime, "call_later", by_hand)
    monkeypatch.setattr(sending, "LONGEST_TURN", sending.TURN)
    transport, _ = scene.open()
    await scene.change(NOTHING)
    for number in range(25):
        transport.sendto(b"%d" % number)
    await scene.change(ETHERNET_ONLY)
    assert len(scene.kernel.carried) == sending.RATE * sending.TURN == 10
    # For each datagram that the program adds, one is sent. Otherwise a program that sends faster would wait forever.
    for number in range(25, 28):
        transport.sendto(b"%d" % number)
    assert len(scene.kernel.carried) == 13
    turns.pop(0)()
    assert len(scene.kernel.carried) == 23
    turns.pop(0)()
    assert [int(data) for _, data in scene.kernel.carried] == list(range(28))
    assert turns == []
    transport.sendto(b"28")
    assert scene.kernel.carried[-1] == ("eth0", b"28")
    assert (scene.statistics.held, scene.statistics.waiting, scene.statistics.lost) == (28, 0, 0)


async def test_a_move_that_fails_is_tried_again_and_what_is_sent_waits(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    scene.kernel.refuse = {"eth0"}
    await scene.change(ETHERNET_ONLY)
    transport.sendto(b"waits")
    await until(lambda: scene.statistics.rebinds_failed >= 3)
    assert scene.kernel.carried == []
    scene.kernel.refuse = set()
    await until(lambda: scene.kernel.carried)
    assert scene.kernel.carried == [("eth0", b"waits")]
    assert scene.statistics.rebinds == 1
    assert not protocol.errors


async def test_the_retries_back_off(scene: DatagramScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "FIRST_RETRY", 1.0)
    runtime_of(scene.loop).random = lambda: 0.0
    delays: list[float] = []
    schedule = Retry.schedule

    def noted(retry: Retry) -> float:
        delays.append(schedule(retry))
        return delays[-1]

    monkeypatch.setattr(Retry, "schedule", noted)
    transport, _ = scene.open()
    scene.kernel.refuse = {"eth0"}
    scene.kernel.silent = True
    scene.kernel.change(ETHERNET_ONLY)
    scene.watcher.recheck()
    for _ in range(5):
        transport._mover._update()
    assert delays == [1, 2, 4, 5, 5, 5]
    assert scene.statistics.rebinds_failed == 6


async def test_a_better_path_that_cannot_be_had_leaves_the_old_one_in_use(scene: DatagramScene) -> None:
    transport, _ = scene.open()
    scene.kernel.refuse = {"eth0"}
    await scene.change(ETHERNET_BETTER)
    await until(lambda: scene.statistics.rebinds_failed >= 2)
    transport.sendto(b"x")
    assert scene.kernel.carried == [("wifi0", b"x")]
    scene.kernel.refuse = set()
    await until(lambda: scene.statistics.rebinds == 1)
    assert transport.get_extra_info("interface") == "eth0"


async def test_a_new_socket_takes_over_where_another_program_has_the_port(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    scene.kernel.ports_taken = frozenset({"eth0"})
    await scene.change(ETHERNET_ONLY)
    transport.sendto(b"x")
    assert scene.kernel.carried == [("eth0", b"x")]
    assert scene.kernel.binds[-1] == ("bind", "eth0")
    assert (scene.statistics.rebinds, scene.statistics.rebinds_failed) == (1, 0)
    assert not protocol.errors


async def test_a_requested_port_that_another_program_has_is_waited_for(scene: DatagramScene) -> None:
    transport, _ = scene.open_at_a_port()
    scene.kernel.ports_taken = frozenset({"eth0"})
    await scene.change(ETHERNET_ONLY)
    transport.sendto(b"x")
    await until(lambda: scene.statistics.rebinds_failed >= 2)
    assert scene.kernel.carried == []
    scene.kernel.ports_taken = frozenset()
    await until(lambda: scene.kernel.carried == [("eth0", b"x")])


async def test_an_old_socket_that_takes_over_from_a_broken_one_is_whole(scene: DatagramScene) -> None:
    transport, _ = scene.open()
    await turn()
    first = socket_of(transport)
    await scene.change(ETHERNET_BETTER)
    scene.kernel.refuse = {"usb0"}
    usb = interface("4: usb0 wifi 127.0.0.1/8")
    by_usb = "default via 127.0.0.254 dev usb0 metric 50"
    await scene.change(network(WIFI, usb, BY_WIFI, by_usb))
    assert scene.statistics.rebinds_failed >= 1
    await scene.change(network(WIFI, BY_WIFI))
    assert socket_of(transport) is first
    binds = list(scene.kernel.binds)
    await scene.change(CHANGES_NOTHING["another gateway"])
    transport.sendto(b"x")
    assert scene.kernel.binds == binds
    assert scene.kernel.carried == [("wifi0", b"x")]


async def test_an_interface_without_a_route_to_the_peer_is_not_moved_to(scene: DatagramScene) -> None:
    transport, _ = scene.open()
    scene.kernel.routeless = {"eth0"}
    await scene.change(ETHERNET_ONLY)
    transport.sendto(b"x")
    assert scene.statistics.rebinds_failed >= 1
    assert scene.kernel.carried == []
    scene.kernel.routeless = set()
    await until(lambda: scene.kernel.carried == [("eth0", b"x")])


async def test_strangers_that_slipped_in_while_it_moved_are_not_heard(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    await turn()
    scene.kernel.intruders = [b"spoofed"]
    scene.peer.sendto(b"genuine", transport.get_extra_info("sockname"))
    await until(lambda: protocol.received)
    assert protocol.received == [b"genuine"]
    assert scene.statistics.foreign == 1


async def test_datagrams_that_come_alone_are_read_one_at_a_time_and_many_that_wait_together(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    address = transport.get_extra_info("sockname")
    await turn()
    for _ in range(9):
        heard = len(protocol.received)
        scene.peer.sendto(b"alone", address)
        await until(lambda: len(protocol.received) > heard)  # noqa: B023 - called at once
    assert scene.kernel.reads == 10  # only the first read is followed by a second read
    for _ in range(16):
        scene.peer.sendto(b"together", address)
    await until(lambda: len(protocol.received) > 9)
    assert protocol.received[9:] == [b"together"] * 16
    assert scene.kernel.reads == 26


async def test_a_full_socket_buffers_pauses_and_resumes_in_order(scene: DatagramScene) -> None:
    transport, protocol = scene.open()
    transport.set_write_buffer_limits(high=10, low=2)
    assert transport.get_write_buffer_limits() == (2, 10)
    scene.kernel.no_room = 1
    sent = [b"%04d" % number for number in range(6)]
    for data in sent:
        transport.sendto(data)
    assert transport.get_write_buffer_size() == 24
    assert protocol.flow == ["pause"]
    await until(lambda: protocol.flow == ["pause", "resume"])
    assert scene.arrived() == sent
    assert (transport.get_write_buffer_size(), scene.statistics.held) == (0, 0)
    with pytest.raises(ValueError, match="low"):
        transport.set_write_buffer_limits(high=1, low=2)


@pytest.mark.parametrize("new", [ETHERNET_BETTER, ETHERNET_ONLY], ids=["overlap", "in place"])
async def test_what_is_buffered_leaves_by_the_new_interface(scene: DatagramScene, new: Network) -> None:
    transport, _ = scene.open()
    scene.kernel.no_room = 10**6
    transport.sendto(b"1")
    transport.sendto(b"2")
    scene.kernel.silent = True
    scene.kernel.change(new)
    scene.kernel.no_room = 0
    scene.watcher.recheck()
    assert scene.kernel.carried == [("eth0", b"1"), ("eth0", b"2")]


async def test_a_loopback_endpoint_is_a_plain_one(scene: DatagramScene) -> None:
    transport, protocol = await open_datagram(scene.watcher, RecordingProtocol, remote_addr=scene.peer.getsockname())
    local, _ = await open_datagram(scene.watcher, RecordingProtocol, local_addr=("127.0.0.1", 0))
    transport.sendto(b"x")
    assert scene.arrived() == [b"x"]
    local.sendto(b"y", scene.peer.getsockname())
    assert scene.arrived() == [b"y"]
    assert scene.kernel.binds == []
    assert transport.get_extra_info("interface") is None
    assert scene.statistics.tracked == 0
    transport.close()
    local.close()
    await turn()
    assert protocol.ends == [None]


async def test_an_endpoint_without_a_peer_is_bound_by_family(scene: DatagramScene) -> None:
    transport, protocol = await open_datagram(
        scene.watcher, RecordingProtocol, local_addr=("0.0.0.0", 0), reuse_port=True, allow_broadcast=True
    )
    scene.transports.append(transport)
    assert protocol.made == 1
    sock = transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
    assert scene.kernel.binds == [("bind", "wifi0")]
    port = transport.get_extra_info("sockname")[1]
    scene.peer.sendto(b"in", ("127.0.0.1", port))
    await until(lambda: protocol.received == [b"in"])
    with pytest.raises(ValueError, match="destination"):
        transport.sendto(b"x")


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nothing": ({}, ValueError, "unexpected address family"),
    "no tuple": ({"local_addr": "127.0.0.1"}, TypeError, "2-tuple"),
    "four": ({"remote_addr": ("::1", 9, 0, 0)}, TypeError, "2-tuple"),
    "families that do not meet": (
        {"local_addr": ("127.0.0.1", 0), "remote_addr": ("::1", 9)},
        ValueError,
        "can not get address information",
    ),
    "unix": ({"family": socket.AF_UNIX, "local_addr": "/nowhere"}, ValueError, "AF_INET"),
}


@pytest.mark.parametrize("what", BAD_ARGUMENTS)
async def test_arguments_are_checked_as_asyncio_checks_them(scene: DatagramScene, what: str) -> None:
    options, error, words = BAD_ARGUMENTS[what]
    with pytest.raises(error, match=words):
        await open_datagram(scene.watcher, RecordingProtocol, **options)


async def test_a_protocol_that_cannot_be_made_leaves_nothing(scene: DatagramScene) -> None:
    def broken() -> RecordingProtocol:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await open_datagram(scene.watcher, broken, family=socket.AF_INET)


async def test_a_local_address_of_an_interface_that_is_no_uplink_is_refused(scene: DatagramScene) -> None:
    elsewhere = interface("3: utun0 tunnel 203.0.113.5/24")
    scene.kernel.change(network(WIFI_RENUMBERED, elsewhere, BY_WIFI, BY_ETHERNET))
    with pytest.raises(BindFailed, match=r"203\.0\.113\.5 does not belong to wifi0") as refusal:
        await open_datagram(scene.watcher, RecordingProtocol, local_addr=("203.0.113.5", 0))
    assert refusal.value.errno == errno.EADDRNOTAVAIL


async def test_without_an_interface_opening_fails(scene: DatagramScene) -> None:
    scene.kernel.change(NOTHING)
    with pytest.raises(NoEffectiveInterface, match="wifi0"):
        await open_datagram(scene.watcher, RecordingProtocol, family=socket.AF_INET)


async def test_without_a_route_to_the_peer_opening_fails_and_names_the_cure(scene: DatagramScene) -> None:
    scene.kernel.routeless = {"wifi0"}
    with pytest.raises(NoRoute, match=r"give wifi0 a route to 198\.51\.100\.7"):
        await open_datagram(scene.watcher, RecordingProtocol, remote_addr=(str(FAR), 9))


async def test_a_bind_that_fails_leaves_nothing(scene: DatagramScene) -> None:
    scene.kernel.refuse = {"wifi0"}
    with pytest.raises(BindFailed):
        await open_datagram(scene.watcher, RecordingProtocol, family=socket.AF_INET)


async def test_opening_waits_for_an_interface_if_that_is_preferred(nothing_left: None) -> None:
    scene = DatagramScene(NOTHING, Preferences(on_no_interface="wait"))
    opening = asyncio.ensure_future(open_datagram(scene.watcher, RecordingProtocol, family=socket.AF_INET))
    await turn()
    assert not opening.done()
    scene.kernel.change(BOTH)
    transport, _ = await asyncio.wait_for(opening, PATIENCE)
    assert transport.get_extra_info("interface") == "wifi0"
    scene.transports.append(transport)
    await scene.close()


async def test_unbound_if_that_is_preferred_and_bound_when_there_is_an_interface(nothing_left: None) -> None:
    scene = DatagramScene(NOTHING, Preferences(on_no_interface="unbound"))
    transport, _ = await open_datagram(scene.watcher, RecordingProtocol, family=socket.AF_INET)
    scene.transports.append(transport)
    assert transport.get_extra_info("interface") is None
    transport.sendto(b"unbound", scene.peer.getsockname())
    assert scene.arrived() == [b"unbound"]
    await scene.change(BOTH)
    assert transport.get_extra_info("interface") == "wifi0"
    await scene.change(NOTHING)
    assert transport.get_extra_info("interface") is None
    assert scene.kernel.binds == [("rebind", "wifi0"), ("unbind", "")]
    await scene.close()


async def test_cancelling_while_a_name_is_resolved_leaves_nothing(scene: DatagramScene) -> None:
    asked = asyncio.Event()

    async def never(*args: Any, **options: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    opening = asyncio.ensure_future(open_datagram(scene.watcher, RecordingProtocol, remote_addr=("name.test", 9), resolve=never))
    await asked.wait()
    assert scene.watcher.running
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not scene.watcher.running


async def test_cancelling_while_it_waits_for_an_interface_leaves_nothing(nothing_left: None) -> None:
    scene = DatagramScene(NOTHING, Preferences(on_no_interface="wait"))
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    several: tuple[dict[str, Any], ...] = ({"family": socket.AF_INET}, {"sock": sock})
    for options in several:
        opening = asyncio.ensure_future(open_datagram(scene.watcher, RecordingProtocol, **options))
        await turn()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    assert sock.fileno() == -1
    await scene.close()


async def test_cancelling_before_the_protocol_is_told_closes_the_transport(scene: DatagramScene) -> None:
    protocol = RecordingProtocol()
    opening = asyncio.ensure_future(open_datagram(scene.watcher, lambda: protocol, family=socket.AF_INET))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await turn()
    assert protocol.ends == [None]


@pytest.fixture
def both_families() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no sockets for both families here")


SPLIT = network(
    "2: wifi0 wifi 203.0.113.2/24 2001:db8:2::2/64",
    "3: eth0 wifi 203.0.113.3/24 2001:db8:3::2/64",
    "default via 203.0.113.1 dev wifi0",
    "default via 2001:db8:3::1 dev eth0",
)
TOGETHER = network(
    "3: eth0 wifi 203.0.113.3/24 2001:db8:3::2/64",
    "default via 203.0.113.1 dev eth0",
    "default via 2001:db8:3::1 dev eth0",
)
IPV4_ONLY = network("3: eth0 wifi 203.0.113.3/24", "default via 203.0.113.1 dev eth0")


LOOPBACK = interface("1: lo loopback 127.0.0.1/8 ::1/128")
LAN = interface("4: lan0 wifi 192.0.2.1/24")
WITH_LAN = (LOOPBACK, LAN, "192.0.2.0/24 dev lan0")
WIDE_BOTH = network(LOOPBACK, WIFI_RENUMBERED, ETHERNET, BY_WIFI, BY_ETHERNET, LAN, "192.0.2.0/24 dev lan0")


class Towards:
    """Finds the socket that an unconnected transport uses for a destination, without sending."""

    def __init__(self, scene: DatagramScene, transport: Any) -> None:
        self.scene = scene
        self.mover = transport._mover

    def __call__(self, host: str) -> str | None:
        """The name of the socket's interface, ``"unbound"``, or ``None`` if the datagram waits."""
        way = self.mover.ways.to((host, 9) if "." in host and ":" not in host else (host, 9, 0, 0))
        if way is None:
            return None
        index = self.scene.kernel.bound(way[0])
        return "unbound" if index is None else str(self.scene.kernel.network().interfaces[index].name)


@pytest.fixture
async def lan(scene: DatagramScene) -> Towards:
    scene.kernel.change(WIDE_BOTH)
    transport, _ = await open_datagram(scene.watcher, RecordingProtocol, local_addr=("0.0.0.0", 0))
    scene.transports.append(transport)
    return Towards(scene, transport)


async def test_each_destination_has_its_own_way_with_the_same_port(lan: Towards) -> None:
    ways = {host: lan(host) for host in ("198.51.100.7", "192.0.2.9", "127.0.0.53", "198.51.100.8")}
    assert list(ways.values()) == ["wifi0", "lan0", "lo", "wifi0"]
    socks = [lan.mover.sock, *lan.mover.held.sockets]
    assert len(socks) == 3
    assert {sock.getsockname()[1] for sock in socks} == {lan.mover.sockname[1]}
    assert not any(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) for sock in socks)


async def test_ways_are_decided_anew_when_the_network_changes(lan: Towards) -> None:
    assert lan("192.0.2.9") == "lan0"
    (side,) = lan.mover.held.sockets
    await lan.scene.change(network(LOOPBACK, WIFI_RENUMBERED, ETHERNET, BY_WIFI, BY_ETHERNET))
    assert side.fileno() == -1
    assert lan("192.0.2.9") == "wifi0"
    await lan.scene.change(WIDE_BOTH)
    assert lan("192.0.2.9") == "lan0"


async def test_a_way_works_while_there_is_no_default_and_what_has_none_waits(lan: Towards) -> None:
    await lan.scene.change(network(*WITH_LAN))
    assert (lan("192.0.2.9"), lan("127.0.0.1"), lan("198.51.100.7")) == ("lan0", "lo", None)


async def test_the_current_socket_and_a_way_change_places_when_the_default_moves_there(lan: Towards) -> None:
    assert lan("192.0.2.9") == "lan0"
    (side,) = lan.mover.held.sockets
    by_lan = "default via 192.0.2.254 dev lan0 metric 1"
    await lan.scene.change(network(LOOPBACK, WIFI_RENUMBERED, BY_WIFI, LAN, "192.0.2.0/24 dev lan0", by_lan))
    assert lan.mover.sock is side
    assert (lan("192.0.2.9"), lan("198.51.100.7")) == ("lan0", "lan0")


async def test_what_comes_by_any_way_is_received_and_what_goes_is_counted(scene: DatagramScene) -> None:
    scene.kernel.change(WIDE_BOTH)
    transport, protocol = await open_datagram(scene.watcher, RecordingProtocol, local_addr=("0.0.0.0", 0))
    scene.transports.append(transport)
    for host in ("127.0.0.1", "localhost"):
        transport.sendto(b"to this host", (host, scene.peer.getsockname()[1]))
    assert scene.arrived() == [b"to this host"] * 2
    assert scene.statistics.sent["lo"] == 2
    (side,) = transport._mover.held.sockets
    scene.peer.sendto(b"back", ("127.0.0.1", side.getsockname()[1]))
    await until(lambda: protocol.received == [b"back"])


async def test_a_way_that_cannot_be_had_is_told_and_counted(scene: DatagramScene) -> None:
    scene.kernel.change(WIDE_BOTH)
    transport, protocol = await open_datagram(scene.watcher, RecordingProtocol, local_addr=("0.0.0.0", 0))
    scene.transports.append(transport)
    scene.kernel.refuse = {"lan0"}
    transport.sendto(b"x", ("192.0.2.9", 9))
    assert [type(error) for error in protocol.errors] == [BindFailed]
    assert scene.statistics.lost_by == {"refused": 1}


async def test_a_silent_first_hop_of_a_way_is_waited_for(scene: DatagramScene) -> None:
    beyond = "198.18.0.0/15 via 192.0.2.254 dev lan0"
    scene.kernel.change(network(LOOPBACK, WIFI_RENUMBERED, BY_WIFI, LAN, beyond))
    transport, _ = await open_datagram(scene.watcher, RecordingProtocol, local_addr=("0.0.0.0", 0))
    scene.transports.append(transport)
    towards = Towards(scene, transport)
    scene.kernel.hops["lan0"] = False
    assert towards("198.18.0.1") is None
    scene.kernel.hops["lan0"] = True
    assert towards("198.18.0.1") == "lan0"
    # The existing path is used until another path's first hop answers.
    scene.kernel.hops["eth0"] = False
    better = "198.18.0.0/15 via 203.0.113.1 dev 3"
    worse = "198.18.0.0/15 via 192.0.2.254 dev lan0 metric 9"
    await scene.change(network(LOOPBACK, WIFI_RENUMBERED, BY_WIFI, LAN, ETHERNET, better, worse, BY_ETHERNET))
    assert towards("198.18.0.1") == "lan0"
    scene.kernel.hops["eth0"] = True
    await until(lambda: towards("198.18.0.1") == "eth0")


async def test_a_socket_of_ones_own_has_ways_too_and_stays_the_current_one(scene: DatagramScene) -> None:
    scene.kernel.change(WIDE_BOTH)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    transport, _ = await open_datagram(scene.watcher, RecordingProtocol, sock=sock)
    scene.transports.append(transport)
    towards = Towards(scene, transport)
    assert (towards("198.51.100.7"), towards("192.0.2.9"), towards("127.0.0.1")) == ("wifi0", "lan0", "lo")
    by_lan = "default via 192.0.2.254 dev lan0 metric 1"
    await scene.change(network(LOOPBACK, WIFI_RENUMBERED, BY_WIFI, LAN, "192.0.2.0/24 dev lan0", by_lan))
    assert transport.get_extra_info("socket").fileno() == sock.fileno()
    assert (towards("198.51.100.7"), towards("192.0.2.9")) == ("lan0", "lan0")


@pytest.mark.usefixtures("both_families")
@pytest.mark.parametrize("own", [False, True], ids=["made", "given"])
async def test_a_socket_for_both_families_has_a_way_for_each(scene: DatagramScene, own: bool) -> None:
    scene.kernel.change(SPLIT)
    sock = None
    if own:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
    transport, _ = await open_datagram(scene.watcher, RecordingProtocol, None if own else ("::", 0), sock=sock)
    scene.transports.append(transport)
    towards = Towards(scene, transport)
    assert transport.get_extra_info("interface") == "eth0"
    assert (towards("2001:db8:9::9"), towards("::ffff:198.51.100.7")) == ("eth0", "wifi0")
    await scene.change(IPV4_ONLY)
    assert towards("::ffff:198.51.100.7") == "eth0"
    await scene.change(TOGETHER)
    assert (towards("2001:db8:9::9"), towards("::ffff:198.51.100.7")) == ("eth0", "eth0")


async def test_a_socket_of_ones_own_is_bound_and_only_moved_in_place(scene: DatagramScene) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", 0))
    transport, protocol = await open_datagram(scene.watcher, RecordingProtocol, sock=sock)
    scene.transports.append(transport)
    assert sock.getblocking() is False
    await scene.change(ETHERNET_BETTER)
    assert scene.kernel.binds == [("rebind", "wifi0"), ("rebind", "eth0")]
    assert transport.get_extra_info("socket").fileno() == sock.fileno()
    scene.peer.sendto(b"x", ("127.0.0.1", sock.getsockname()[1]))
    await until(lambda: protocol.received == [b"x"])
    transport.close()
    await turn()
    assert sock.fileno() == -1


async def test_a_socket_that_is_bound_already_is_left_alone(scene: DatagramScene) -> None:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    scene.kernel.bind(bound, ETHERNET)
    addressed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    addressed.bind(("127.0.0.1", 0))
    connected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    connected.connect(scene.peer.getsockname())
    names = []
    for sock in (bound, addressed, connected):
        transport, _ = await open_datagram(scene.watcher, RecordingProtocol, sock=sock)
        scene.transports.append(transport)
        names.append(transport.get_extra_info("interface"))
    with scene.watcher.hold():
        await scene.change(ETHERNET_ONLY)
    assert names == ["eth0", None, None]
    assert scene.kernel.binds == [("bind", "eth0")]
    assert scene.statistics.tracked == 0


async def test_a_connected_socket_of_ones_own_ignores_the_destination_as_asyncio_does(scene: DatagramScene) -> None:
    connected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    connected.connect(scene.peer.getsockname())
    transport, _ = await open_datagram(scene.watcher, RecordingProtocol, sock=connected)
    scene.transports.append(transport)
    transport.sendto(b"x", ("192.0.2.1", 1))
    assert scene.arrived() == [b"x"]


async def test_a_socket_that_cannot_be_bound_is_closed(scene: DatagramScene) -> None:
    scene.kernel.refuse = {"wifi0"}
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with pytest.raises(BindFailed):
        await open_datagram(scene.watcher, RecordingProtocol, sock=sock)
    assert sock.fileno() == -1


async def test_a_socket_must_be_one_for_datagrams_and_comes_alone(scene: DatagramScene) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream, pytest.raises(ValueError, match="UDP Socket was expected"):
        await open_datagram(scene.watcher, RecordingProtocol, sock=stream)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix, pytest.raises(ValueError, match="only IPv4 and IPv6"):
        await open_datagram(scene.watcher, RecordingProtocol, sock=unix)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(ValueError, match=r"socket modifier keyword arguments .*family=2"),
    ):
        await open_datagram(scene.watcher, RecordingProtocol, sock=sock, family=socket.AF_INET)


async def test_it_goes_on_receiving_after_a_send_took_the_error_for_which_libuv_has_stopped_watching(
    scene: DatagramScene,
) -> None:
    """libuv has got the error and a datagram from the system by then, and stops watching; reading finds the datagram only."""
    transport, protocol = scene.open()
    own, address = transport.get_extra_info("sockname"), scene.peer.getsockname()
    ours, theirs = socket.socketpair()

    def send() -> None:
        ours.recv(1)
        transport.sendto(b"takes the error")

    scene.loop.add_reader(ours, send)
    await turn()
    theirs.send(b"x")  # ready before the endpoint
    scene.peer.close()
    transport.sendto(b"refused")
    scene.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    scene.peer.bind(address)
    scene.peer.sendto(b"first", own)
    await until(lambda: b"first" in protocol.received, seconds=20)
    scene.peer.sendto(b"second", own)
    await until(lambda: b"second" in protocol.received, seconds=20)
    scene.loop.remove_reader(ours)
    ours.close()
    theirs.close()
