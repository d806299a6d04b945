"""The kernel's events: a PF_ROUTE socket and a kernel-event socket.

Neither is enough. Only kernel events report a change of delegate and the loss of a link; only PF_ROUTE reports a default route
that configd writes. Some default routes change without any event (recorded from xnu: IPv6 defaults that the kernel makes itself,
and those that go with an interface). Therefore any event means "read again", and the watcher also reads again from time to time.
"""

from __future__ import annotations

import contextlib
import weakref
from ctypes import sizeof
from typing import TYPE_CHECKING

from bindsock.kernel.darwin import abi

if TYPE_CHECKING:
    from bindsock.kernel.darwin.syscalls import Syscalls, SystemSocket

_BUFFER_BYTES = 256 * 1024
_FULL = 800
"""How many messages fill the buffer (recorded: one of 8,192 bytes held 26). The kernel drops further ones silently."""

_ROUTE_CHANGES = (abi.RTM_ADD, abi.RTM_DELETE, abi.RTM_CHANGE)
_ADDRESS_CHANGES = (abi.RTM_NEWADDR, abi.RTM_DELADDR)
_INTERFACE_CHANGES = (abi.RTM_IFINFO, abi.RTM_IFINFO2)

_NEIGHBOURS = abi.RTF_LLINFO | abi.RTF_WASCLONED

_EVENTS = {
    abi.KEV_DL_SUBCLASS: frozenset(
        (
            abi.KEV_DL_SIFFLAGS,
            abi.KEV_DL_IF_ATTACHED,
            abi.KEV_DL_IF_DETACHING,
            abi.KEV_DL_IF_DETACHED,
            abi.KEV_DL_LINK_OFF,
            abi.KEV_DL_LINK_ON,
            abi.KEV_DL_PROTO_ATTACHED,
            abi.KEV_DL_PROTO_DETACHED,
            abi.KEV_DL_PRIMARY_ELECTED,
            abi.KEV_DL_IFDELEGATE_CHANGED,
        )
    ),
    abi.KEV_INET_SUBCLASS: frozenset(
        (abi.KEV_INET_NEW_ADDR, abi.KEV_INET_CHANGED_ADDR, abi.KEV_INET_ADDR_DELETED, abi.KEV_INET_SIFNETMASK)
    ),
    abi.KEV_INET6_SUBCLASS: frozenset(
        (
            abi.KEV_INET6_NEW_USER_ADDR,
            abi.KEV_INET6_CHANGED_ADDR,
            abi.KEV_INET6_ADDR_DELETED,
            abi.KEV_INET6_NEW_LL_ADDR,
            abi.KEV_INET6_NEW_RTADV_ADDR,
            abi.KEV_INET6_DEFROUTER,
        )
    ),
}
"""The event codes that can change a decision, by subclass. Multicast groups, radio quality and power states cannot."""

_NEIGHBOUR_EVENTS = (abi.KEV_ND6_NDFAILURE, abi.KEV_ND6_NDALIVE)


class _Source:
    """An :class:`bindsock.kernel.EventSource`."""

    def __init__(self, sock: SystemSocket) -> None:
        self.overruns: int = 0
        self.urgent = True
        self._sock = sock
        self._finalizer = weakref.finalize(self, sock.close)

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._sock.fileno() if self._finalizer.alive else -1

    def drain(self) -> bool:
        """Read all pending messages, at most as many as the buffer holds. Once one matters, the rest is discarded unparsed.

        A full buffer counts as an overrun: the kernel drops events silently, and the one that matters may be among them.
        """
        dirty = False
        for _ in range(_FULL):
            try:
                message = self._sock.recv(4096)
            except BlockingIOError:
                return dirty
            except OSError as error:
                if error.errno != abi.ENOBUFS:
                    raise
                # No known kernel reports dropped events; if one does, it will be by this error.
                self.overruns += 1
                dirty = True
                continue
            dirty = dirty or self.matters(message)
        self.overruns += 1
        return True

    def close(self) -> None:
        """Close the socket."""
        self._finalizer()

    @staticmethod
    def matters(message: bytes) -> bool:
        """Whether a message can change a reading. Never raises, for any bytes."""
        raise NotImplementedError


class RouteEvents(_Source):
    """The events of PF_ROUTE: routes, addresses, interfaces."""

    @staticmethod
    def matters(message: bytes) -> bool:
        """Whether a message can change a reading.

        These do not: the answers to other programs' lookups, which all listeners receive; RTM_MISS, with which macOS 26.4 floods
        them; neighbours that come and go; failed requests. Malformed messages do not, either: a short write of any unprivileged
        program is passed on to all listeners unchanged (xnu bsd/net/rtsock.c, route_output).
        """
        if len(message) < 4 or message[2] != abi.RTM_VERSION or int.from_bytes(message[:2], "little") != len(message):
            return False
        kind = message[3]
        if kind in _ROUTE_CHANGES:
            if len(message) < sizeof(abi.rt_msghdr):
                return False
            header = abi.rt_msghdr.from_buffer_copy(message)
            return header.rtm_errno == 0 and not header.rtm_flags & _NEIGHBOURS
        if kind in _ADDRESS_CHANGES:
            return len(message) >= sizeof(abi.ifa_msghdr)
        return kind in _INTERFACE_CHANGES and len(message) >= sizeof(abi.if_msghdr)


class KernelEvents(_Source):
    """The events of the kernel-event socket: interfaces, links, delegates, addresses."""

    @staticmethod
    def matters(message: bytes) -> bool:
        """Whether a record of one or more events can change a reading. Never raises, for any bytes."""
        position = 0
        while len(message) - position >= abi.KEV_MSG_HEADER_SIZE:
            size, vendor, kind, subclass, _, code = (
                int.from_bytes(message[position + at : position + at + 4], "little")
                for at in range(0, abi.KEV_MSG_HEADER_SIZE, 4)
            )
            if vendor == abi.KEV_VENDOR_APPLE and kind == abi.KEV_NETWORK_CLASS:
                if code in _EVENTS.get(subclass, ()):
                    return True
                # These announce routers and addresses; whether a neighbour is reachable does not matter.
                if subclass == abi.KEV_ND6_SUBCLASS and code not in _NEIGHBOUR_EVENTS:
                    return True
            if size < abi.KEV_MSG_HEADER_SIZE:
                return False
            position += size
        return False


def open_route_events(syscalls: Syscalls) -> RouteEvents:
    """Listen to PF_ROUTE.

    :raises OSError: a sandbox forbids it
    """
    sock = syscalls.route_socket()
    _enlarge(sock)
    return RouteEvents(sock)


def open_kernel_events(syscalls: Syscalls) -> KernelEvents:
    """Listen to the network class of kernel events.

    :raises OSError: a sandbox forbids it
    """
    sock = syscalls.event_socket()
    try:
        # Without a filter no events arrive (xnu bsd/kern/kern_event.c, kev_attach).
        request = abi.kev_request(abi.KEV_VENDOR_APPLE, abi.KEV_NETWORK_CLASS, 0)
        sock.ioctl(abi.SIOCSKEVFILT, bytes(request))
    except OSError:
        sock.close()
        raise
    _enlarge(sock)
    return KernelEvents(sock)


def _enlarge(sock: SystemSocket) -> None:
    # A smaller buffer works, too, but overruns earlier.
    with contextlib.suppress(OSError):
        sock.setsockopt(abi.SOL_SOCKET, abi.SO_RCVBUF, _BUFFER_BYTES)
