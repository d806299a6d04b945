"""Darwin's resolver daemon, with a fake of libSystem's client library."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from bindsock.netmon.watcher import Watcher
from bindsock.resolvers import Answer, DnsSdLookup, NoResolver

HAS_REAL_ONE = hasattr(ctypes.CDLL(None), "DNSServiceGetAddrInfo")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The compiled fake library."""
    pytest.importorskip("ziglang")
    if HAS_REAL_ONE:
        pytest.skip("this system has the real one")
    directory = tmp_path_factory.mktemp("standin")
    shared = directory / "standin.so"
    caches = {name: str(directory / name.lower()) for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    source = Path(__file__).with_name("standin.c")
    # The process already has the libc functions that it calls. Linking zig's own libc would first build it, for half a minute.
    options = ["-shared", "-fPIC", "-nostdlib", "-O1", "-fno-sanitize=undefined", "-Wall", "-Werror"]
    command = [sys.executable, "-m", "ziglang", "cc", *options, "-o", str(shared), str(source)]
    subprocess.run(command, check=True, env={**os.environ, **caches})
    return ctypes.CDLL(str(shared))


async def test_addresses_come_by_the_interface_that_is_named(library: ctypes.CDLL, watcher: Watcher) -> None:
    lookup = DnsSdLookup(library)
    answer = await lookup("host.7.example", socket.AF_INET, 7, watcher)
    assert answer == Answer((ip_address("192.0.2.1"), ip_address("192.0.2.2")))
    answer = await lookup("host.8.example", socket.AF_INET6, 8, watcher)
    assert answer == Answer((ip_address("2001:db8::1"), ip_address("fe80::7%8")))
    assert library.standin_open() == 0


async def test_negative_answers_and_a_timeout_are_asked_for(library: ctypes.CDLL, watcher: Watcher) -> None:
    await DnsSdLookup(library)("host.7.example", socket.AF_INET, 7, watcher)
    assert library.standin_flags() == 0x1000 | 0x10000


async def test_a_name_without_addresses_of_the_family_has_none(library: ctypes.CDLL, watcher: Watcher) -> None:
    assert await DnsSdLookup(library)("empty.example", socket.AF_INET, 7, watcher) == Answer(())


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("unknown.example", socket.EAI_NONAME),
        ("slow.example", socket.EAI_AGAIN),
        ("broken.example", socket.EAI_AGAIN),
        ("bad.example", socket.EAI_AGAIN),
        ("\N{SNOWMAN}" * 64 + ".example", socket.EAI_NONAME),
    ],
)
async def test_failures_are_those_of_getaddrinfo(library: ctypes.CDLL, watcher: Watcher, name: str, code: int) -> None:
    with pytest.raises(socket.gaierror) as error:
        await DnsSdLookup(library)(name, socket.AF_INET, 7, watcher)
    assert error.value.errno == code
    assert library.standin_open() == 0


async def test_a_daemon_that_says_nothing_is_given_up(library: ctypes.CDLL, watcher: Watcher) -> None:
    with pytest.raises(socket.gaierror, match="did not answer"):
        await DnsSdLookup(library, timeout=0.05)("silent.example", socket.AF_INET, 7, watcher)
    assert library.standin_open() == 0


async def test_without_the_daemon_another_way_is_to_be_tried(library: ctypes.CDLL, watcher: Watcher) -> None:
    with pytest.raises(NoResolver, match="not running"):
        await DnsSdLookup(library)("no-daemon.example", socket.AF_INET, 7, watcher)


@pytest.mark.skipif(HAS_REAL_ONE, reason="this system has them")
async def test_without_the_functions_another_way_is_to_be_tried(watcher: Watcher) -> None:
    with pytest.raises(NoResolver, match="no DNSServiceGetAddrInfo"):
        await DnsSdLookup()("example.com", socket.AF_INET, 7, watcher)
