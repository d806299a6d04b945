"""The command line on a scripted network: a VPN over Wi-Fi, an Ethernet card beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bindsock import kernel as kernels
from bindsock.cli import main
from bindsock.model.network import Network
from bindsock.testing import SimulatedKernel, interface, network

Run = Callable[..., tuple[int, str, str]]
"""Run the command line: exit status, standard output, standard error."""

LOOPBACK = interface("1: lo0 loopback 127.0.0.1/8 ::1/128")
WIFI = interface("2: en0 wifi 192.0.2.5/24 2001:db8:2::5/64")
WIRED = interface("3: en1 wired 198.51.100.5/24")
TUNNEL = interface("4: utun4 tunnel 10.66.0.2/24 delegate 2")


def beneath_vpn() -> Network:
    """The VPN has the best default route, the uplinks have worse ones."""
    return network(
        LOOPBACK,
        WIFI,
        WIRED,
        TUNNEL,
        "default dev utun4 metric 50",
        "default via 192.0.2.1 dev en0 metric 600",
        "default via 198.51.100.1 dev en1 metric 700",
        "default via 2001:db8:2::1 dev en0 metric 600",
    )


def only_vpn() -> Network:
    """The VPN has the only default route."""
    return network(LOOPBACK, WIFI, TUNNEL, "default dev utun4 metric 50")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> SimulatedKernel:
    """Replaces the system's kernel backend."""
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
