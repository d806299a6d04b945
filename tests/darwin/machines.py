"""Simulated machines for tests."""

from __future__ import annotations

from bindsock.testing.darwin import SimulatedDarwin


def two_uplinks() -> SimulatedDarwin:
    """Wi-Fi en0 with the unscoped defaults, and Ethernet en5 with scoped ones."""
    machine = SimulatedDarwin()
    machine.add_uplink("en0", "wifi", ipv4="192.168.1.23/24", gateway="192.168.1.1", ipv6="2001:db8:1::a/64", router="fe80::1")
    machine.add_uplink("en5", "wired", ipv4="10.20.0.15/24", gateway="10.20.0.1", ipv6="2001:db8:5::b/64", router="fe80::5")
    return machine
