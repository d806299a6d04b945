"""The command line on a scripted network: a VPN over Wi-Fi, an Ethernet card beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bindsock import kernel as kernels
from bindsock.cli import main
from bindsock.model.network import InterfaceKind, Network
from bindsock.testing.simulated import SimulatedKernel, interface, network, route

Run = Callable[..., tuple[int, str, str]]
"""Run the command line: exit status, standard output, standard error."""

LOOPBACK = interface("lo0", 1, "127.0.0.1/8", "::1/128", kind=InterfaceKind.LOOPBACK)
WIFI = interface("en0", 2, "192.0.2.5/24", "2001:db8:2::5/64")
WIRED = interface("en1", 3, "198.51.100.5/24", kind=InterfaceKind.WIRED)
TUNNEL = interface("utun4", 4, "10.66.0.2/24", kind=InterfaceKind.TUNNEL, delegate=2)


def beneath_vpn() -> Network:
    """The VPN has the default route, the uplinks have worse ones."""
    return network(
        LOOPBACK,
        WIFI,
        WIRED,
        TUNNEL,
        route("0.0.0.0/0", 4, metric=50),
        route("0.0.0.0/0", 2, "192.0.2.1", metric=600),
        route("0.0.0.0/0", 3, "198.51.100.1", metric=700),
        route("::/0", 2, "2001:db8:2::1", metric=600),
    )


def only_vpn() -> Network:
    """The VPN has taken the default route, and left none beside it."""
    return network(LOOPBACK, WIFI, TUNNEL, route("0.0.0.0/0", 4, metric=50))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> SimulatedKernel:
    """The system's kernel from now on."""
    simulated = SimulatedKernel(beneath_vpn())
    monkeypatch.setattr(kernels, "current", lambda: simulated)
    return simulated


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(arguments)
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_command
