"""The options by which a program chooses the interface for a socket's multicasts; the same on every system."""

from __future__ import annotations

import contextlib
import socket


def multicast_options(sock: socket.socket) -> set[str]:
    """Which of ``IP_MULTICAST_IF`` and ``IPV6_MULTICAST_IF`` are set.

    ``IP_MULTICAST_IF`` returns only an address, so an interface that was chosen by its index (``struct ip_mreqn``) is not
    noticed (linux net/ipv4/ip_sockglue.c, do_ip_getsockopt).
    """
    found = set()
    with contextlib.suppress(OSError):
        if any(sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, 4)):
            found.add("IP_MULTICAST_IF")
    if sock.family == socket.AF_INET6:
        with contextlib.suppress(OSError):
            if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF):
                found.add("IPV6_MULTICAST_IF")
    return found
