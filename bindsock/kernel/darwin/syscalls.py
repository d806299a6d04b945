"""The system calls of the Darwin backend: five calls and two kinds of socket.

Everything else in this package only computes on bytes. So these calls can be replaced, on any machine, by those of a recorded
kernel, a simulated one (:mod:`bindsock.testing.darwin`) or one in another process.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import socket
import weakref
from typing import TYPE_CHECKING, Protocol

from bindsock.kernel.darwin import abi

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SYSCTL_ATTEMPTS = 8


class SystemSocket(Protocol):
    """A non-blocking socket of the kernel's own families, PF_ROUTE or PF_SYSTEM.

    Every method raises :class:`OSError` with Darwin's errno.
    """

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""

    def send(self, data: bytes, /) -> int:
        """Write one message."""

    def recv(self, size: int, /) -> bytes:
        """Read one message, truncated to ``size`` bytes.

        :raises BlockingIOError: there is no message
        """

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        """Set an option, with Darwin's numbers."""

    def ioctl(self, request: int, argument: bytes, /) -> bytes:
        """Do an ioctl.

        :return: the argument as the kernel left it
        """

    def close(self) -> None:
        """Close it."""


class Syscalls(Protocol):
    """The system calls that the backend needs. Every method raises :class:`OSError` with Darwin's errno, on any machine."""

    def ioctl(self, request: int, argument: bytes, /) -> bytes:
        """Do an ioctl on a datagram socket.

        :return: the argument as the kernel left it
        """

    def sysctl(self, mib: Sequence[int], /) -> bytes:
        """The whole value of a sysctl."""

    def interfaces(self) -> list[tuple[int, str]]:
        """The index and the name of each interface."""

    def route_socket(self) -> SystemSocket:
        """A PF_ROUTE socket that sees the messages of all protocols."""

    def event_socket(self) -> SystemSocket:
        """A PF_SYSTEM socket for kernel events. It receives none before its filter is set."""


class LiveSocket:
    """A :class:`SystemSocket` of the running system."""

    def __init__(self, family: int, protocol: int) -> None:
        self._sock = socket.socket(family, socket.SOCK_RAW, protocol)
        self._sock.setblocking(False)
        # If it is never closed, neither a descriptor nor a ResourceWarning is left.
        self._finalizer = weakref.finalize(self, self._sock.close)

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, data: bytes, /) -> int:
        return self._sock.send(data)

    def recv(self, size: int, /) -> bytes:
        # Not recvfrom(): the socket module cannot express addresses of these families.
        return self._sock.recv(size)

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        self._sock.setsockopt(level, option, value)

    def ioctl(self, request: int, argument: bytes, /) -> bytes:
        return _ioctl(self._sock, request, argument)

    def close(self) -> None:
        self._finalizer()


class LiveSyscalls:
    """The :class:`Syscalls` of the running system, a Mac or an iPhone. Unprivileged."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._finalizer: weakref.finalize[[], LiveSyscalls] | None = None

    def ioctl(self, request: int, argument: bytes, /) -> bytes:
        if self._sock is None:
            self._sock = _datagram_socket()
            self._finalizer = weakref.finalize(self, self._sock.close)
        return _ioctl(self._sock, request, argument)

    def sysctl(self, mib: Sequence[int], /) -> bytes:
        name = (ctypes.c_int * len(mib))(*mib)
        size = ctypes.c_size_t(0)
        for attempt in range(_SYSCTL_ATTEMPTS):
            error = self._call_sysctl(name, None, size)
            if error:
                raise OSError(error, os.strerror(error))
            # The value may have grown meanwhile, which is ENOMEM: add more slack with each attempt.
            size.value += (size.value >> 2) * (attempt + 1) + 4096
            buffer = ctypes.create_string_buffer(size.value)
            error = self._call_sysctl(name, buffer, size)
            if not error:
                return buffer.raw[: size.value]
            if error != abi.ENOMEM:
                break
        raise OSError(error, os.strerror(error))

    @staticmethod
    def _call_sysctl(name: ctypes.Array[ctypes.c_int], buffer: ctypes.Array[ctypes.c_char] | None, size: ctypes.c_size_t) -> int:
        """Fetch a value or, without a buffer, its size.

        :return: the errno, 0 for success
        """
        if _sysctl()(name, len(name), buffer, ctypes.byref(size), None, 0) == 0:
            return 0
        return ctypes.get_errno()

    def interfaces(self) -> list[tuple[int, str]]:
        return socket.if_nameindex()

    def close(self) -> None:
        """Close the datagram socket; the next ioctl opens another one."""
        if self._finalizer is not None:
            self._finalizer()
        self._sock = self._finalizer = None

    def route_socket(self) -> LiveSocket:
        # Protocol 0: a socket for one address family misses messages without a family (xnu bsd/net/raw_usrreq.c, raw_input).
        return LiveSocket(abi.AF_ROUTE, 0)

    def event_socket(self) -> LiveSocket:
        return LiveSocket(abi.AF_SYSTEM, abi.SYSPROTO_EVENT)


@functools.cache
def _sysctl() -> Callable[..., int]:
    """The C library's sysctl(). Unlike ioctl() it is not variadic, so all its arguments can be declared."""
    function = ctypes.CDLL(None, use_errno=True).sysctl
    function.argtypes = (
        ctypes.POINTER(ctypes.c_int),
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.POINTER(ctypes.c_size_t),
        ctypes.c_void_p,
        ctypes.c_size_t,
    )
    function.restype = ctypes.c_int
    return function


def _datagram_socket() -> socket.socket:
    """A socket for ioctl(): IPv6 if possible, which ioctls about IPv6 addresses need (xnu bsd/netinet6/in6.c, in6_control)."""
    try:
        return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    except OSError:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _ioctl(sock: socket.socket, request: int, argument: bytes) -> bytes:
    """An ioctl that reads and writes its argument.

    Apple's arm64 calling convention passes variadic arguments on the stack, and the third argument of ioctl() is variadic.
    :mod:`fcntl` is compiled C and does this right. ctypes does it only if ``argtypes`` names just the two fixed arguments;
    with three, the kernel would take a random value from the stack as the address.
    """
    result: bytes = fcntl.ioctl(sock, request, argument)
    return result
