"""asyncio connections that leave by the right network interface and stay on it."""

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
    InterfaceChanged,
    KernelError,
    NoEffectiveInterface,
    NoRoute,
    UnsupportedSystem,
)
from bindsock.eventloop import EventLoop, loop_factory
from bindsock.factory import Changes, TransportFactory
from bindsock.model.change import Cause, Change, FamilyChange
from bindsock.model.decision import Basis, Candidate, Decision, Path
from bindsock.model.network import Interface, InterfaceAddress, InterfaceKind, Network, Route, RouteKind
from bindsock.model.statistics import Statistics
from bindsock.model.subflows import Multipath, Subflow
from bindsock.reconnect.hooks import OnReconnect
from bindsock.resolvers import InterfaceResolver
from bindsock.routing.effective import Preferences

__all__ = [
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
    "Interface",
    "InterfaceAddress",
    "InterfaceChanged",
    "InterfaceKind",
    "InterfaceResolver",
    "KernelError",
    "Multipath",
    "Network",
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
    "bind",
    "changes",
    "connect",
    "create_connection",
    "create_datagram_endpoint",
    "effective_interface",
    "explain",
    "interface_of",
    "loop_factory",
    "multipath_of",
    "open_connection",
    "socket_factory",
    "statistics",
    "track",
]
