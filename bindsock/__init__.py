"""asyncio connections that leave by the right network interface and stay on it.

The public names are imported from their modules on first use, so ``import bindsock`` alone is cheap. A program that cannot read
its libraries later, for example after ``chroot``, should import ``bindsock.default`` and ``bindsock.kernel.linux`` first.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bindsock.datagram.open import DatagramTransport
    from bindsock.default import (
        bind,
        changes,
        connect,
        create_connection,
        create_datagram_endpoint,
        effective_interface,
        explain,
        interface_of,
        multipath_of,
        open_connection,
        socket_factory,
        statistics,
        track,
    )
    from bindsock.errors import (
        BindFailed,
        BindsockError,
        EgressMismatch,
        FirewallBlocked,
        InterfaceChanged,
        KernelError,
        NoAnswer,
        NoEffectiveInterface,
        NoRoute,
        UnsupportedSystem,
    )
    from bindsock.eventloop import Adoption, EventLoop, adopt, loop_factory
    from bindsock.factory import Changes, TransportFactory
    from bindsock.model.change import Cause, Change, FamilyChange
    from bindsock.model.decision import Basis, Candidate, Decision, Path
    from bindsock.model.network import Interface, InterfaceAddress, InterfaceKind, Network, Route, RouteKind
    from bindsock.model.statistics import Statistics
    from bindsock.model.subflows import Multipath, Subflow
    from bindsock.reconnect.hooks import OnReconnect
    from bindsock.resolvers import InterfaceResolver
    from bindsock.routing.effective import Preferences
    from bindsock.run import Installation, install

__all__ = [
    "Adoption",
    "Basis",
    "BindFailed",
    "BindsockError",
    "Candidate",
    "Cause",
    "Change",
    "Changes",
    "DatagramTransport",
    "Decision",
    "EgressMismatch",
    "EventLoop",
    "FamilyChange",
    "FirewallBlocked",
    "Installation",
    "Interface",
    "InterfaceAddress",
    "InterfaceChanged",
    "InterfaceKind",
    "InterfaceResolver",
    "KernelError",
    "Multipath",
    "Network",
    "NoAnswer",
    "NoEffectiveInterface",
    "NoRoute",
    "OnReconnect",
    "Path",
    "Preferences",
    "Route",
    "RouteKind",
    "Statistics",
    "Subflow",
    "TransportFactory",
    "UnsupportedSystem",
    "adopt",
    "bind",
    "changes",
    "connect",
    "create_connection",
    "create_datagram_endpoint",
    "effective_interface",
    "explain",
    "install",
    "interface_of",
    "loop_factory",
    "multipath_of",
    "open_connection",
    "socket_factory",
    "statistics",
    "track",
]

_MODULES = {
    "Adoption": "bindsock.eventloop",
    "Basis": "bindsock.model.decision",
    "BindFailed": "bindsock.errors",
    "BindsockError": "bindsock.errors",
    "Candidate": "bindsock.model.decision",
    "Cause": "bindsock.model.change",
    "Change": "bindsock.model.change",
    "Changes": "bindsock.factory",
    "DatagramTransport": "bindsock.datagram.open",
    "Decision": "bindsock.model.decision",
    "EgressMismatch": "bindsock.errors",
    "EventLoop": "bindsock.eventloop",
    "FamilyChange": "bindsock.model.change",
    "FirewallBlocked": "bindsock.errors",
    "Installation": "bindsock.run",
    "Interface": "bindsock.model.network",
    "InterfaceAddress": "bindsock.model.network",
    "InterfaceChanged": "bindsock.errors",
    "InterfaceKind": "bindsock.model.network",
    "InterfaceResolver": "bindsock.resolvers",
    "KernelError": "bindsock.errors",
    "Multipath": "bindsock.model.subflows",
    "Network": "bindsock.model.network",
    "NoAnswer": "bindsock.errors",
    "NoEffectiveInterface": "bindsock.errors",
    "NoRoute": "bindsock.errors",
    "OnReconnect": "bindsock.reconnect.hooks",
    "Path": "bindsock.model.decision",
    "Preferences": "bindsock.routing.effective",
    "Route": "bindsock.model.network",
    "RouteKind": "bindsock.model.network",
    "Statistics": "bindsock.model.statistics",
    "Subflow": "bindsock.model.subflows",
    "TransportFactory": "bindsock.factory",
    "UnsupportedSystem": "bindsock.errors",
    "adopt": "bindsock.eventloop",
    "bind": "bindsock.default",
    "changes": "bindsock.default",
    "connect": "bindsock.default",
    "create_connection": "bindsock.default",
    "create_datagram_endpoint": "bindsock.default",
    "effective_interface": "bindsock.default",
    "explain": "bindsock.default",
    "install": "bindsock.run",
    "interface_of": "bindsock.default",
    "loop_factory": "bindsock.eventloop",
    "multipath_of": "bindsock.default",
    "open_connection": "bindsock.default",
    "socket_factory": "bindsock.default",
    "statistics": "bindsock.default",
    "track": "bindsock.default",
}

if not TYPE_CHECKING:  # a type checker must report names that are not imported above

    def __getattr__(name: str) -> Any:
        """Import a public name from its module."""
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(module), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
