"""The laboratory: real network namespaces with uplinks, a server and a VPN, for tests, benchmarks and demonstrations.

.. code-block:: python

    with Lab() as lab, lab.inside():
        lab.vpn_up("metric")
        ...                     # connect to lab.server.ipv4, lab.server.tcp_port
        lab.down("wifi0")
"""

from ._lab import Counters, Datagram, Lab, Stream
from ._namespaces import LabUnavailable, available, enter_user_namespace
from ._tap import Packet, Tap
from ._topology import Server, UplinkKind
from ._vpn import VpnCounters, VpnMode, VpnOuter

__all__ = [
    "Counters",
    "Datagram",
    "Lab",
    "LabUnavailable",
    "Packet",
    "Server",
    "Stream",
    "Tap",
    "UplinkKind",
    "VpnCounters",
    "VpnMode",
    "VpnOuter",
    "available",
    "enter_user_namespace",
]
