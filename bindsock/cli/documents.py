"""Converts the library's values to JSON, for ``--json``. Scripts rely on these names."""

from __future__ import annotations

from typing import Any

from bindsock.model.change import FamilyChange
from bindsock.model.decision import Decision, Path
from bindsock.model.network import Interface, InterfaceAddress, Network, family_name
from bindsock.model.preferences import Preferences, is_expensive


def interface(value: Interface, network: Network, preferences: Preferences) -> dict[str, Any]:
    delegate = network.interfaces.get(value.delegate) if value.delegate is not None else None
    return {
        "name": value.name,
        "index": value.index,
        "alternative_names": list(value.alternative_names),
        "kind": str(value.kind),
        "up": value.up,
        "running": value.running,
        "mtu": value.mtu,
        "delegate": delegate.name if delegate is not None else None,
        "expensive": is_expensive(value, preferences),
        "constrained": value.constrained,
        "addresses": [_address(a) for a in value.addresses],
    }


def _address(value: InterfaceAddress) -> dict[str, Any]:
    return {
        "address": str(value.address),
        "prefix_length": value.prefix_length,
        "usable": value.usable,
        "tentative": value.tentative,
        "deprecated": value.deprecated,
        "temporary": value.temporary,
    }


def decision(value: Decision) -> dict[str, Any]:
    """``interface`` is null if no interface may be used, and if ``unbound`` is true."""
    return {
        "target": family_name(value.family) if isinstance(value.target, int) else str(value.target),
        "family": family_name(value.family),
        "interface": value.interface.name if value.interface is not None else None,
        "index": value.interface.index if value.interface is not None else None,
        "gateway": str(value.gateway) if value.gateway is not None else None,
        "source": str(value.source) if value.source is not None else None,
        "basis": str(value.basis),
        "unbound": value.unbound,
        "tunnels": list(value.tunnels),
        "candidates": [
            {"interface": c.interface, "index": c.index, "taken": c.taken, "reason": c.reason} for c in value.candidates
        ],
        "notes": list(value.notes),
    }


def path(value: Path | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {
        "interface": value.interface,
        "index": value.index,
        "addresses": sorted(map(str, value.addresses)),
        "gateway": str(value.gateway) if value.gateway is not None else None,
    }


def family_change(value: FamilyChange) -> dict[str, Any]:
    return {
        "moved": value.moved,
        "from": path(value.old_path),
        "to": path(value.new_path),
        "decision": decision(value.new_decision),
    }
