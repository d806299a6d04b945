"""The simulated kernel's sockets for PF_ROUTE and kernel events."""

from __future__ import annotations

import socket
from collections import deque
from ctypes import sizeof
from ipaddress import ip_network
from typing import TYPE_CHECKING

from bindsock.kernel.darwin import abi
from bindsock.kernel.darwin.messages import address_of, prefix_length_of, sockaddrs
from bindsock.testing.darwin._encoding import PID, route_message
from bindsock.testing.darwin._errors import darwin_error

if TYPE_CHECKING:
    from bindsock.testing.darwin._kernel import SimulatedDarwin
    from bindsock.testing.darwin._state import SimulatedRoute

_SIOCGKEVFILT = 0x400C6503
_SO_USELOOPBACK = 0x40


class SimulatedSystemSocket:
    """A queue of messages, with a descriptor that is readable while the queue is not empty.

    :param size: the size of the receive buffer, in bytes
    """

    def __init__(self, kernel: SimulatedDarwin, size: int) -> None:
        self.kernel = kernel
        self.queue: deque[bytes] = deque()
        self.dropped: int = 0
        self._size = size
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)

    @property
    def closed(self) -> bool:
        return self._reader.fileno() == -1

    def deliver(self, message: bytes) -> None:
        """Queue a message. If it does not fit, it is dropped silently."""
        if self.closed:
            return
        # Recorded: 8,192 bytes hold 26 messages of some 160.
        if len(self.queue) >= self._size * 26 // 8192:
            self.dropped += 1
            return
        if not self.queue:
            self._writer.send(b"!")
        self.queue.append(message)

    def fileno(self) -> int:
        return self._reader.fileno()

    def send(self, data: bytes, /) -> int:
        raise darwin_error(abi.EOPNOTSUPP)

    def recv(self, size: int, /) -> bytes:
        if self.closed:
            raise darwin_error(abi.EBADF)
        if not self.queue:
            raise darwin_error(abi.EAGAIN)
        message = self.queue.popleft()
        if not self.queue:
            self._reader.recv(1)
        return message[:size]

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        if self.closed:
            raise darwin_error(abi.EBADF)
        if (level, option) != (abi.SOL_SOCKET, abi.SO_RCVBUF):
            raise darwin_error(abi.ENOPROTOOPT)
        self._size = value

    def ioctl(self, request: int, argument: bytes, /) -> bytes:
        return self.kernel.ioctl(request, argument)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class EventSocket(SimulatedSystemSocket):
    """A kernel-event socket. It receives nothing before its filter is set."""

    def __init__(self, kernel: SimulatedDarwin) -> None:
        super().__init__(kernel, 32768)
        self.filter: tuple[int, int, int] = (0xFFFFFFFF, 0, 0)

    def wants(self, vendor: int, kind: int, subclass: int) -> bool:
        return all(asked in (0, given) for asked, given in zip(self.filter, (vendor, kind, subclass), strict=True))

    def ioctl(self, request: int, argument: bytes, /) -> bytes:
        if request == abi.SIOCSKEVFILT:
            words = abi.kev_request.from_buffer_copy(argument)
            self.filter = (words.vendor_code, words.kev_class, words.kev_subclass)
            return argument
        if request == _SIOCGKEVFILT:
            return bytes(abi.kev_request(*self.filter))
        if request >> 8 & 0xFF == ord("i"):
            return super().ioctl(request, argument)
        raise darwin_error(abi.ENOTSUP)


class RouteSocket(SimulatedSystemSocket):
    """A PF_ROUTE socket of an unprivileged program. It can look up routes; malformed messages that it writes reach all
    listeners."""

    def __init__(self, kernel: SimulatedDarwin) -> None:
        super().__init__(kernel, 8192)
        self._hears_itself = True

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        if (level, option) == (abi.SOL_SOCKET, _SO_USELOOPBACK):
            self._hears_itself = bool(value)
            return
        super().setsockopt(level, option, value)

    def send(self, data: bytes, /) -> int:
        if self.closed:
            raise darwin_error(abi.EBADF)
        if len(data) < sizeof(abi.rt_msghdr) or int.from_bytes(data[:2], "little") != len(data):
            self.kernel.inject(data)
            raise darwin_error(abi.EINVAL)
        header = abi.rt_msghdr.from_buffer_copy(data)
        if header.rtm_version != abi.RTM_VERSION:
            self._reject(data, abi.EPROTONOSUPPORT)
        if header.rtm_type not in (abi.RTM_GET, abi.RTM_GET_SILENT):
            self._reject(data, abi.EPERM)
        if header.rtm_type == abi.RTM_GET_SILENT and not self._hears_itself:
            self.kernel.inject(data)
            raise darwin_error(abi.EINVAL)
        reply, error = self._answer(data, header)
        if header.rtm_type == abi.RTM_GET_SILENT:
            # Only the sender receives the answer, and send() succeeds even if the answer is an error.
            self.deliver(reply)
            return len(data)
        self.kernel.inject(reply, without=None if self._hears_itself else self)
        if error:
            raise darwin_error(error)
        return len(data)

    def _reject(self, data: bytes, error: int) -> None:
        self.kernel.inject(_with_error(data, error))
        raise darwin_error(error)

    def _answer(self, data: bytes, header: abi.rt_msghdr) -> tuple[bytes, int]:
        found, error = self._find(data, header)
        if found is None:
            return _with_error(data, error), error
        reply = route_message(abi.RTM_GET, found, echo=False, sequence=header.rtm_seq)
        answered = abi.rt_msghdr.from_buffer_copy(reply)
        answered.rtm_pid = PID
        answered.rtm_flags |= abi.RTF_DONE
        return bytes(answered) + reply[sizeof(abi.rt_msghdr) :], 0

    def _find(self, data: bytes, header: abi.rt_msghdr) -> tuple[SimulatedRoute | None, int]:
        asked = sockaddrs(data, sizeof(header), header.rtm_addrs)
        destination = address_of(asked.get(abi.RTA_DST, b""))
        if destination is None:
            return None, abi.EINVAL
        scope = header.rtm_index if header.rtm_flags & abi.RTF_IFSCOPE else 0
        state = self.kernel.state
        if abi.RTA_NETMASK not in asked:
            return state.lookup(destination, scope), abi.ESRCH
        family = abi.AF_INET if destination.version == 4 else abi.AF_INET6
        length = prefix_length_of(asked[abi.RTA_NETMASK], family)
        network = ip_network((destination, length or 0), strict=False)
        candidates = [r for r in state.of_version(destination.version) if r.destination == network]
        for route in candidates:
            if scope and (route.interface.index == scope):
                return route, 0
        unscoped = next((r for r in candidates if not r.scoped), None)
        return (unscoped, 0) if unscoped is not None and not scope else (None, abi.ESRCH)


def _with_error(data: bytes, error: int) -> bytes:
    header = abi.rt_msghdr.from_buffer_copy(data)
    header.rtm_type = abi.RTM_GET if header.rtm_type == abi.RTM_GET_SILENT else header.rtm_type
    header.rtm_errno = error
    header.rtm_pid = PID
    return bytes(header) + data[sizeof(header) :]
