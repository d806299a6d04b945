"""The simulated kernel: the five system calls of the backend, and the operations for tests."""

from __future__ import annotations

from ctypes import sizeof
from typing import TYPE_CHECKING

from bindsock.kernel.darwin import abi
from bindsock.kernel.darwin.messages import address_of
from bindsock.testing.darwin import _encoding as encoding
from bindsock.testing.darwin._configd import ConfiguredMachine
from bindsock.testing.darwin._errors import darwin_error
from bindsock.testing.darwin._shadows import SimulatedDarwinKernel
from bindsock.testing.darwin._sockets import SimulatedSocket
from bindsock.testing.darwin._state import Hardware, SimulatedInterface
from bindsock.testing.darwin._system_sockets import EventSocket, RouteSocket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindsock.testing.darwin._packet import Packet

_FAMILIES = {4: abi.AF_INET, 6: abi.AF_INET6}


class SimulatedDarwin(ConfiguredMachine):
    """A small model of Darwin's kernel, which implements :class:`bindsock.kernel.darwin.syscalls.Syscalls`.

    It models interfaces with delegates, scoped routes, bound sockets, and the messages that changes cause, as in xnu-7195.
    Routing is modelled as far as sockets depend on it, without neighbours, MTU discovery and firewall.

    A new one has lo0 and stf0, like a Mac without a network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Packet] = []
        """The packets that left the machine."""
        self.delivered = 0
        """The number of datagrams delivered to sockets of the machine itself."""
        self.denied: set[str] = set()
        """What a sandbox forbids: ``"route"`` sockets, ``"event"`` sockets, and the ``"dump"`` of routes."""
        self.knows_vpn = True
        """Whether SIOCGIFXFLAGS reports IFXF_IS_VPN (macOS 15)."""
        self.slept: float = 0.0
        """How long the machine has slept, in seconds."""
        self.sockets: list[SimulatedSocket] = []
        self._last_port = 49151
        self.add_interface("lo0", "loopback", mtu=16384, quiet=True)
        self.add_interface("stf0", Hardware(abi.IFRTYPE_FAMILY_STF, 0, 57, 0), up=False, mtu=1280, quiet=True)
        self.add_address("lo0", "127.0.0.1/8", quiet=True)
        self.add_address("lo0", "::1/128", quiet=True)
        self.add_address("lo0", "fe80::1/64", quiet=True)

    def kernel(self) -> SimulatedDarwinKernel:
        """The Darwin backend on this machine. It can bind the machine's sockets, and real sockets."""
        return SimulatedDarwinKernel(self)

    def sleep(self, seconds: float) -> None:
        """Let the machine sleep. No event is sent."""
        self.slept += seconds

    def ioctl(self, request: int, argument: bytes, /) -> bytes:
        name = argument[: abi.IFNAMSIZ].split(b"\0", 1)[0].decode("ascii", "replace")
        try:
            interface = self.state.named(name)
        except KeyError:
            raise darwin_error(abi.ENXIO) from None
        if request == abi.SIOCGIFAFLAG_IN6:
            return self._address_flags(interface, argument)
        answer = abi.ifreq.from_buffer_copy(argument)
        if not self._fill(answer.ifr_ifru, request, interface):
            raise darwin_error(abi.EOPNOTSUPP)
        return bytes(answer)

    def _fill(self, union: abi.ifreq_union, request: int, interface: SimulatedInterface) -> bool:
        if request == abi.SIOCGIFFLAGS:
            union.ifr_flags = interface.flags
        elif request == abi.SIOCGIFMTU:
            union.ifr_mtu = interface.mtu
        elif request == abi.SIOCGIFDELEGATE:
            union.ifr_delegated = interface.delegate
        elif request == abi.SIOCGIFTYPE:
            hardware = interface.hardware
            union.ifr_type[:] = [hardware.type, hardware.family, hardware.subfamily]
        elif request == abi.SIOCGIFFUNCTIONALTYPE:
            union.ifr_functional_type = interface.functional_type
        elif request == abi.SIOCGIFEXPENSIVE:
            union.ifr_expensive = interface.expensive
        elif request == abi.SIOCGIFCONSTRAINED:
            union.ifr_constrained = interface.constrained
        elif request == abi.SIOCGIFXFLAGS:
            union.ifr_xflags = abi.IFXF_IS_VPN if interface.vpn and self.knows_vpn else 0
        else:
            return False
        return True

    def _address_flags(self, interface: SimulatedInterface, argument: bytes) -> bytes:
        answer = abi.in6_ifreq.from_buffer_copy(argument)
        address = address_of(argument[abi.IFNAMSIZ : abi.IFNAMSIZ + sizeof(abi.sockaddr_in6)])
        if not any(own.ip == address for own in interface.addresses):
            raise darwin_error(abi.EADDRNOTAVAIL)
        answer.ifr_ifru.ifru_flags6 = abi.IN6_IFF_TENTATIVE if address in interface.tentative else 0
        return bytes(answer)

    def sysctl(self, mib: Sequence[int], /) -> bytes:
        if len(mib) != 6 or tuple(mib[:3]) != (abi.CTL_NET, abi.AF_ROUTE, 0):
            raise darwin_error(abi.EINVAL)
        family, operation = mib[3], mib[4]
        if operation == abi.NET_RT_IFLIST2:
            return b"".join(encoding.interface_dump(i) for i in self.state.interfaces.values())
        if operation not in (abi.NET_RT_DUMP, abi.NET_RT_DUMP2):
            raise darwin_error(abi.EINVAL)
        if "dump" in self.denied:
            raise darwin_error(abi.EPERM)
        versions = [v for v, number in _FAMILIES.items() if family in (0, number)]
        return b"".join(encoding.route_dump(r, operation) for v in versions for r in self.state.of_version(v))

    def interfaces(self) -> list[tuple[int, str]]:
        return [(index, interface.name) for index, interface in self.state.interfaces.items()]

    def route_socket(self) -> RouteSocket:
        if "route" in self.denied:
            raise darwin_error(abi.EPERM)
        sock = RouteSocket(self)
        self.listeners.add(sock)
        return sock

    def event_socket(self) -> EventSocket:
        if "event" in self.denied:
            raise darwin_error(abi.EPERM)
        sock = EventSocket(self)
        self.listeners.add(sock)
        return sock

    def socket(self, family: int, kind: int, protocol: int = 0) -> SimulatedSocket:
        """Make a socket of a program.

        :param family: ``AF_INET`` or ``AF_INET6``, Darwin's number or this machine's
        :param kind: ``SOCK_DGRAM``, ``SOCK_STREAM`` or ``SOCK_RAW``
        """
        sock = SimulatedSocket(self, family, kind, protocol)
        self.sockets.append(sock)
        return sock

    def free_port(self) -> int:
        """A free ephemeral port."""
        self._last_port += 1
        return self._last_port

    def transmit(self, packet: Packet) -> None:
        """Let a packet leave the machine."""
        self.sent.append(packet)

    def elapse(self) -> None:
        """Let time pass until TCP has retransmitted all unacknowledged data."""
        for sock in self.sockets:
            sock.retransmit()
