"""Installing and uninstalling: what is covered in between, and that nothing stays afterwards."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc._channel  # type: ignore[import-untyped]
import grpc.aio._channel  # type: ignore[import-untyped]
import pycares
import pytest
import trio
import uvloop

import bindsock
from bindsock.eventloop import BoundLoop
from bindsock.resolvers import c_ares
from bindsock.run.policy import RunPolicy
from bindsock.run.table import PATCHES

if TYPE_CHECKING:
    from bindsock.kernel import Kernel

OWNERS: tuple[Any, ...] = (
    asyncio,
    asyncio.unix_events,
    socket,
    socket.socket,
    subprocess.Popen,
    uvloop,
    trio,
    trio.lowlevel,
    grpc._channel.Channel,
    grpc.aio._channel.Channel,
    pycares.Channel,
    BoundLoop,
    *(value for value in vars(asyncio.unix_events).values() if isinstance(value, type) and "_loop_factory" in vars(value)),
)


def state() -> list[Any]:
    return [dict(vars(owner)) for owner in OWNERS] + [dict(os.environ), list(sys.meta_path)]


def test_uninstalling_leaves_nothing_behind() -> None:
    before = state()
    with bindsock.install():
        unchanged = [owner for owner, now, then in zip(OWNERS, state(), before, strict=False) if now == then]
        assert unchanged == [socket]
    assert state() == before


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.module)
def test_each_patch_says_what_it_covers_and_is_of_a_module_that_exists(patch: Any) -> None:
    assert patch.covers
    assert patch.apply.__doc__
    __import__(patch.module)


def test_a_second_installation_is_an_error() -> None:
    with bindsock.install(), pytest.raises(RuntimeError, match="already installed"):
        bindsock.install()
    with bindsock.install():
        pass


def test_uninstalling_twice_does_no_harm() -> None:
    installation = bindsock.install()
    installation.uninstall()
    with bindsock.install():
        installation.uninstall()
        assert issubclass(asyncio.SelectorEventLoop, BoundLoop)


@pytest.mark.parametrize("options", [{"interface": ""}, {"better_path": "never"}, {"interfase": "eth0"}])
def test_what_cannot_be_meant_is_an_error_and_installs_nothing(options: dict[str, Any]) -> None:
    before = state()
    with pytest.raises((TypeError, ValueError)):
        bindsock.install(**options)
    assert state() == before


def connections(installation: bindsock.Installation) -> list[dict[str, Any]]:
    """The report without the libraries that other tests of this process have imported."""
    return [entry for entry in installation.report() if not entry["detail"].startswith("imported")]


async def running() -> type[asyncio.AbstractEventLoop]:
    return type(asyncio.get_running_loop())


def test_every_way_to_a_new_event_loop_leads_to_one_of_bindsocks() -> None:
    with bindsock.install():
        assert issubclass(asyncio.run(running()), BoundLoop)
        with asyncio.Runner() as runner:
            assert issubclass(runner.run(running()), BoundLoop)
        loop = asyncio.new_event_loop()
        assert isinstance(loop, BoundLoop)
        loop.close()
        for made in (asyncio.SelectorEventLoop, uvloop.Loop, uvloop.new_event_loop):
            loop = made()
            assert isinstance(loop, BoundLoop)
            loop.close()
        assert issubclass(uvloop.run(running()), uvloop.Loop)
        assert issubclass(uvloop.run(running()), BoundLoop)
        with asyncio.Runner(loop_factory=bindsock.EventLoop) as runner:
            assert runner.run(running()) is bindsock.EventLoop
        for base in (asyncio.SelectorEventLoop, uvloop.Loop):
            with asyncio.Runner(loop_factory=bindsock.loop_factory(base)) as runner:
                assert issubclass(runner.run(running()), base)
    assert not issubclass(asyncio.run(running()), BoundLoop)


def test_no_event_loop_policy_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.events, "_event_loop_policy", None)
    with bindsock.install():
        assert asyncio.events._event_loop_policy is None  # type: ignore[attr-defined]


def test_loops_of_bindsocks_own_class_have_the_same_preferences() -> None:
    preferences = bindsock.Preferences(exclude=["docker*"])
    with bindsock.install(preferences):
        loop = bindsock.EventLoop()
        assert loop.transport_factory.preferences == preferences
        loop.close()
    loop = bindsock.EventLoop()
    assert loop.transport_factory.preferences == bindsock.Preferences()
    loop.close()


def test_a_policy_is_the_same_on_the_other_side_of_the_environment() -> None:
    policy = RunPolicy("eth0", bindsock.Preferences(exclude=["docker*"], tunnels="split"), "abort", "http://proxy", "/journal")
    assert RunPolicy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"preferences": {"cost": "high"}}', '{"preferences": {}, "nonsense": 1}'])
def test_what_is_no_policy_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"policy|Expecting|cost"):
        RunPolicy.from_json(text)


def test_servers_loopback_and_unix_sockets_are_left_alone(tmp_path: Any) -> None:
    with bindsock.install(interface="nothing0") as installation:
        with socket.create_server(("127.0.0.1", 0)) as server:
            for address in (server.getsockname(), ("localhost", server.getsockname()[1])):
                with socket.create_connection(address) as client, server.accept()[0] as accepted:
                    client.sendall(b"ping")
                    assert accepted.recv(4) == b"ping"
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as sock:
            listener.bind(str(tmp_path / "socket"))
            listener.listen()
            sock.connect(str(tmp_path / "socket"))
        with socket.socket(type=socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
            receiver.bind(("127.0.0.1", 0))
            sender.sendto(b"one", receiver.getsockname())
            sender.sendmsg([b"two"], (), 0, receiver.getsockname())
            assert (receiver.recv(9), receiver.recv(9)) == (b"one", b"two")
        assert {entry["outcome"] for entry in connections(installation)} == {"left alone"}


@pytest.mark.parametrize("address", [None, (), ("127.0.0.1",), ("127.0.0.1", "http"), 7, ("127.0.0.1", -1)])
def test_what_is_no_address_is_the_systems_own_error(address: Any) -> None:
    def attempt(kind: int) -> list[type[BaseException]]:
        errors: list[type[BaseException]] = []
        for name in ("connect", "connect_ex"):
            with socket.socket(type=kind) as sock, pytest.raises((TypeError, OverflowError)) as error:
                getattr(sock, name)(address)
            errors.append(error.type)
        return errors

    plain = attempt(socket.SOCK_STREAM)
    with bindsock.install():
        assert attempt(socket.SOCK_STREAM) == plain


def test_a_closed_socket_is_the_systems_own_error() -> None:
    with bindsock.install():
        sock = socket.socket()
        sock.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.connect(("192.0.2.1", 9))


def test_what_cannot_be_bound_is_closed_and_refused() -> None:
    with bindsock.install(interface="nothing0") as installation:
        with socket.socket() as sock:
            with pytest.raises(bindsock.NoEffectiveInterface):
                sock.connect(("192.0.2.1", 9))
            assert sock.fileno() == -1
        with socket.socket() as sock, pytest.raises(bindsock.NoEffectiveInterface):
            sock.connect_ex(("192.0.2.1", 9))
        for send in ("sendto", "sendmsg"):
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                arguments = (b"data", ("192.0.2.1", 9)) if send == "sendto" else ([b"data"], (), 0, ("192.0.2.1", 9))
                with pytest.raises(bindsock.NoEffectiveInterface):
                    getattr(sock, send)(*arguments)
                assert sock.fileno() == -1
        with pytest.raises(bindsock.NoEffectiveInterface):
            asyncio.run(_connect("192.0.2.1"))
        assert connections(installation) == [
            {"outcome": "refused", "what": "sockets", "detail": "NoEffectiveInterface", "count": 4},
            {"outcome": "refused", "what": "event loops", "detail": "NoEffectiveInterface", "count": 1},
        ]


async def _connect(host: str) -> None:
    await asyncio.open_connection(host, 9)


def test_grpc_channels_that_cannot_be_led_are_refused() -> None:
    with bindsock.install(), pytest.raises(bindsock.BindFailed, match="xds"):
        grpc.insecure_channel("xds:///service")


def test_threads_that_ask_c_ares_share_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels: list[Kernel] = []
    monkeypatch.setattr(c_ares, "bind_channel", lambda factory, channel: kernels.append(factory.kernel))
    monkeypatch.setattr(pycares.Channel, "query", lambda *args, **kwargs: None)  # what matters happens before it

    def ask() -> None:
        channel = pycares.Channel(servers=["127.0.0.1"])
        channel.query("example.com", pycares.QUERY_TYPE_A, callback=lambda result, error: None)
        channel.close()

    with bindsock.install(), ThreadPoolExecutor() as pool:
        for asked in [pool.submit(ask) for _ in range(2)]:
            asked.result()
    first, second = kernels
    assert first is not second


FORKING = """
import os, socket, sys, bindsock
with bindsock.install(interface="nothing0") as installation:
    def fail():
        try:
            socket.create_connection(("192.0.2.1", 9))
        except bindsock.NoEffectiveInterface:
            return installation.report()[0]["count"]
    assert fail() == 1
    child = os.fork()
    if not child:
        os._exit(fail())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert fail() == 2
"""


def test_a_forked_child_counts_its_own_connections() -> None:
    subprocess.run([sys.executable, "-c", FORKING], check=True)
