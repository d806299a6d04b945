"""The servers that are asked, and what asking them imports, without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bindsock.resolvers.answers import NoResolver
from bindsock.resolvers.servers import _configured_servers

NAT64 = """
import asyncio, importlib.abc, sys, threading
from bindsock import InterfaceResolver, TransportFactory
from bindsock.resolvers.servers import ConfiguredLookup
from bindsock.testing import SimulatedKernel, interface, network

class Recorder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("dns", "bindsock.resolvers", "trio")):
            print(name, "loop" if threading.current_thread() is threading.main_thread() else "thread")

async def main():
    kernel = SimulatedKernel(network(interface("2: en0 wifi 2001:db8:2::5/64"), "default via 2001:db8:2::1 dev en0"))
    resolver = InterfaceResolver(lookups=[ConfiguredLookup(sys.argv[1])])
    async with TransportFactory(kernel=kernel, resolver=resolver) as factory:
        sys.meta_path.insert(0, Recorder())
        for _ in range(2):
            try:
                await factory.open_connection("192.0.2.9", 80)
            except OSError:
                pass
            print("-")

asyncio.run(main())
"""
"""Asks for a NAT64 prefix, and prints which modules are imported, and where.

Nothing is sent: the server has an IPv4 address, and the network has only IPv6.
"""


def test_no_library_is_imported_in_the_thread_of_the_event_loop_to_ask_a_server(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\n")
    command = [sys.executable, "-c", NAT64, str(tmp_path / "resolv.conf")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    first, second, _ = said.split("-\n")
    imported = dict(line.split() for line in first.splitlines())
    assert {"bindsock.resolvers.nat64", "dns.message", "dns.rdtypes.IN.AAAA"} <= imported.keys()
    by_loop = [name for name, where in imported.items() if where == "loop"]
    assert by_loop == ["dns", "dns.version"], "small, and tells whether dnspython is installed"
    assert not {"dns.resolver", "trio"} & imported.keys()
    assert second == ""


def test_the_servers_of_the_system_are_those_that_are_addresses(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    lines = (
        "# nameserver 192.0.2.1",
        "search example.com",
        "nameserver",
        "nameserver 192.0.2.2 # the router",
        "nameserver router",
    )
    path.write_text("\n".join([*lines, "\tnameserver fe80::1%eth0", "options edns0", "nameserver 192.0.2.3", ""]))
    assert _configured_servers(str(path)) == ["192.0.2.2", "fe80::1%eth0", "192.0.2.3"]


def test_a_system_without_such_a_file_has_no_resolver(tmp_path: Path) -> None:
    with pytest.raises(NoResolver, match="cannot be read"):
        _configured_servers(str(tmp_path / "resolv.conf"))
