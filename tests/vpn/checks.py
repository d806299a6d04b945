"""Checks that must hold for bindsock beside a VPN, however the VPN has taken the default route."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from bindsock.cli import main
from tests.vpn.programs import SERVERS
from tests.vpn.traffic import Echoes, fresh

if TYPE_CHECKING:
    from bindsock.testing.lab import Lab, Tap
    from tests.vpn.programs import Vpn

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_NOWHERE = {4: "10.9.0.77", 6: "fd10:9::77"}
"""Unused addresses in the server's network."""
_PATIENCE = 5.0


def bindsock(*arguments: str) -> Any:
    """The JSON output of the command."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main([*arguments, "--json"]) == 0
    return json.loads(output.getvalue())


def decisions(lab: Lab) -> list[tuple[int, dict[str, Any]]]:
    """The decisions of ``bindsock status`` and ``bindsock explain``, with their IP versions."""
    status = bindsock("status")["effective"]
    explained = [host["addresses"][0] for host in bindsock("explain", lab.server.ipv4, lab.server.ipv6)["hosts"]]
    assert all(address["reachable"] and address["advice"] is None for address in explained)
    return [(4, status["ipv4"]), (6, status["ipv6"]), *zip((4, 6), (a["decision"] for a in explained), strict=True)]


def decided_right(lab: Lab, vpn: Vpn, *interfaces: str) -> None:
    """Check that all decisions name the interface, and the reason against the tunnel.

    :param interfaces: one for both families, or IPv4's and IPv6's
    """
    for version, decision in decisions(lab):
        assert decision["interface"] == (interfaces[0] if version == 4 else interfaces[-1])
        assert not decision["unbound"]
        if vpn.device and version in vpn.families:
            assert vpn.device in decision["tunnels"]
            (tunnel,) = [c for c in decision["candidates"] if c["interface"] == vpn.device]
            assert not tunnel["taken"]
            assert tunnel["reason"].startswith("is a tunnel")


def has_the_default(lab: Lab, vpn: Vpn) -> None:
    """Check that an unbound socket's packets go into the VPN: otherwise the test would prove nothing."""
    for version in vpn.families:
        family = FAMILIES[version]
        if not vpn.device and not vpn.encapsulated:
            with socket.create_connection((lab.server.address(family), lab.server.tcp_port), timeout=_PATIENCE) as sock:
                assert uplink_of(lab, sock.makefile("rb").readline().split()[1].decode()) is None
            continue
        with taken(lab, vpn, _NOWHERE[version]) as tap, socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"unbound", (_NOWHERE[version], 9))
            deadline = time.monotonic() + _PATIENCE
            while not tap.packets:
                assert time.monotonic() < deadline, f"{vpn.name} does not have the default route of IPv{version}"
                time.sleep(0.01)


def taken(lab: Lab, vpn: Vpn, address: str) -> Tap:
    """A tap that collects the packets to an address that go into the VPN."""
    if vpn.encapsulated:
        return lab.tap(protocol=vpn.encapsulated)
    return lab.tap(interface=vpn.device, address=address)


def left_by(lab: Lab, fresh: list[tuple[str, str | None, str]], *interfaces: str) -> None:
    """Check that new streams and endpoints of both families use the interface, and that the server saw its address."""
    expected = [interfaces[0]] * 2 + [interfaces[-1]] * 2
    assert [(used, uplink_of(lab, source)) for _, used, source in fresh] == [(name, name) for name in expected], fresh


def uplink_of(lab: Lab, source: str) -> str | None:
    """The uplink whose networks contain an address. Unlike the laboratory's function, it knows DHCP addresses."""
    numbers = {str(number): name for number, name in enumerate(lab.uplinks, 1)}
    first, second, *_ = source.removeprefix("fd").replace(":", ".").split(".")
    return numbers.get(second) if first == "10" else None


def is_refused(lab: Lab, says: str | None = None) -> None:
    """Check that a new connection fails, and that no packet of it bypasses the VPN.

    :param says: a regular expression that must match the error's text
    """
    for host in SERVERS.values():
        with lab.tap(interface="wifi0", address=host) as tap:
            with pytest.raises(OSError, match=says):
                asyncio.run(fresh(Echoes([host], lab.server.udp_port, lab.server.tcp_port), connect_timeout=1.0))
            assert tap.packets == []
