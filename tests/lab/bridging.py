"""Moves an uplink into a bridge, as virtual machines and some hotspots do."""

from __future__ import annotations

from bindsock.testing.lab import Lab


def into_a_bridge(lab: Lab) -> None:
    """Make ``wifi0`` a port of a new bridge ``br0``, which gets its address and its default route."""
    address, gateway = lab.address("wifi0"), lab.gateway("wifi0")
    lab.ip("link", "add", "br0", "type", "bridge")
    lab.ip("link", "set", "br0", "up")
    lab.ip("link", "set", "wifi0", "master", "br0")
    lab.ip("addr", "del", f"{address}/24", "dev", "wifi0")
    lab.ip("addr", "add", f"{address}/24", "dev", "br0")
    lab.ip("route", "add", "default", "via", gateway, "dev", "br0", "metric", "90")
    lab.wait_until_running("br0")  # until then another uplink is better
