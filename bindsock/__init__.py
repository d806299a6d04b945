"""asyncio connections that leave by the right network interface and stay on it."""

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
from bindsock.effective import Preferences
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
from bindsock.network import (
    Basis,
    Candidate,
    Cause,
    Change,
    Decision,
    FamilyChange,
    Interface,
    InterfaceAddress,
    InterfaceKind,
    Network,
    Path,
    Route,
    RouteKind,
)
from bindsock.resolvers import InterfaceResolver
from bindsock.statistics import Statistics
from bindsock.subflows import Multipath, Subflow
from bindsock.transports.datagram import DatagramTransport
from bindsock.transports.hooks import OnReconnect

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
