"""Netlink: parsing messages and attributes, and a channel that sends the kernel one request at a time.

Parsing is strict and pure: truncated or out-of-bounds data raises :class:`KernelError`, and nothing else is raised. The layout is
that of ``include/uapi/linux/netlink.h``, in the machine's byte order. The numbers are written out here because :mod:`socket` only
has them on Linux, and this package is also type-checked for other systems.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from bindsock.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

AF_NETLINK = 16
NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_GENERIC = 16
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_GET_STRICT_CHK = 12

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_I32 = struct.Struct("=i")
_U32 = struct.Struct("=I")
_NESTED = 0x8000

REPLY_SECONDS = 2.0
"""How long to wait for an answer. The kernel usually answers in microseconds."""
_ATTEMPTS = 5
_STRAY_DATAGRAMS = 1000
_BATCH_SIZE = 24
"""Questions that are sent at once. Each answer takes some 4 KB of the socket's buffer, whatever its length
(linux net/core/rtnetlink.c, NLMSG_GOODSIZE)."""
_BUFFER = 1 << 16
_LARGEST_BUFFER = 1 << 22
_MSG_TRUNC = int(socket.MSG_TRUNC)
"""An int, since arithmetic with an :mod:`enum` flag takes longer than the system call."""


class Message(NamedTuple):
    """One netlink message."""

    kind: int
    flags: int
    sequence: int
    port: int
    payload: bytes


def messages(datagram: bytes) -> list[Message]:
    """Split a datagram into messages.

    :raises KernelError: a length is out of bounds
    """
    found = []
    offset, end = 0, len(datagram)
    while offset < end:
        if end - offset < _HEADER.size:
            raise KernelError(f"netlink: {end - offset} bytes are too few for a message header")
        length, kind, flags, sequence, port = _HEADER.unpack_from(datagram, offset)
        if not _HEADER.size <= length <= end - offset:
            raise KernelError(f"netlink: a message claims {length} bytes, but {end - offset} are left")
        found.append(Message(kind, flags, sequence, port, datagram[offset + _HEADER.size : offset + length]))
        offset += (length + 3) & ~3
    return found


def every_attribute(payload: bytes, offset: int = 0) -> list[tuple[int, bytes]]:
    """The attributes as pairs of type and value, for lists in which a type occurs more than once."""
    found = []
    end = len(payload)
    while end - offset >= 4:
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if length < 4 or length > end - offset:
            raise KernelError(f"netlink: an attribute claims {length} bytes, but {end - offset} are left")
        found.append((kind & 0x3FFF, payload[offset + 4 : offset + length]))
        offset += (length + 3) & ~3
    return found


def attributes(payload: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes after the offset, by type. If a type occurs more than once, the last attribute counts.

    Up to three bytes at the end are ignored. Both rules are the kernel's own (``linux lib/nlattr.c``).

    :raises KernelError: the offset or a length is out of bounds
    """
    end = len(payload)
    if offset > end:
        raise KernelError(f"netlink: a message of {end} bytes is shorter than its fixed part of {offset}")
    unpack = _ATTRIBUTE.unpack_from
    found: dict[int, bytes] = {}
    while end - offset >= 4:
        length, kind = unpack(payload, offset)
        if length < 4 or length > end - offset:
            raise KernelError(f"netlink: an attribute claims {length} bytes, but {end - offset} are left")
        found[kind & 0x3FFF] = payload[offset + 4 : offset + length]  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
        offset += (length + 3) & ~3
    return found


def fixed(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    """Unpack the fixed part at the beginning of a payload.

    :raises KernelError: the payload is too short
    """
    if len(payload) < layout.size:
        raise KernelError(f"netlink: a message of {len(payload)} bytes is shorter than its fixed part of {layout.size}")
    return layout.unpack_from(payload)


def u32(attribute: bytes) -> int:
    """An unsigned 32-bit attribute.

    :raises KernelError: it has another size
    """
    if len(attribute) != 4:
        raise KernelError(f"netlink: an attribute has {len(attribute)} bytes instead of 4")
    return int(_U32.unpack(attribute)[0])


def i32(attribute: bytes) -> int:
    """A signed 32-bit attribute.

    :raises KernelError: it has another size
    """
    if len(attribute) != 4:
        raise KernelError(f"netlink: an attribute has {len(attribute)} bytes instead of 4")
    return int(_I32.unpack(attribute)[0])


def text(attribute: bytes) -> str:
    """Decode a name. Names are bytes to the kernel; bytes that are not UTF-8 are decoded as :func:`os.fsdecode` does."""
    return attribute.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def attribute(kind: int, value: bytes) -> bytes:
    """Encode an attribute, with padding."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """Encode an attribute that consists of attributes."""
    return attribute(kind | _NESTED, b"".join(parts))


def attribute_u32(kind: int, value: int) -> bytes:
    """Encode an attribute of 32 bits."""
    return _ATTRIBUTE.pack(8, kind) + _U32.pack(value & 0xFFFFFFFF)


def request(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Encode a request to the kernel."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, sequence, 0) + body


def refusal(payload: bytes) -> int:
    """The errno in an NLMSG_ERROR, or in the NLMSG_DONE at the end of a dump; 0 for an acknowledgement.

    :raises KernelError: the payload is too short, or its number is no errno
    """
    if len(payload) < 4:
        raise KernelError("netlink: an answer is too short for its error number")
    code = -int(_I32.unpack_from(payload)[0])
    if not 0 <= code <= 4095:
        raise KernelError(f"netlink: {-code} is not a valid error number")
    return code


class NetlinkSocket(Protocol):
    """The methods of a socket that a :class:`Channel` uses."""

    def send(self, data: bytes, /) -> int: ...

    def recvmsg(self, bufsize: int, /) -> tuple[bytes, list[tuple[int, int, bytes]], int, tuple[int, int]]:
        """Data, ancillary data, flags, and the sender's port and groups."""

    def getsockname(self) -> tuple[int, int]: ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


def open_query_socket(protocol: int = NETLINK_ROUTE) -> socket.socket:
    """Open a blocking netlink socket whose reads time out after :data:`REPLY_SECONDS`.

    :raises OSError: the system refuses
    """
    sock = socket.socket(AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        sock.bind((0, 0))
        seconds, fraction = divmod(REPLY_SECONDS, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(seconds), int(fraction * 1e6)))
        try:
            # Dumps then contain only what was asked for, no exceptions of the route cache. Linux 4.20.
            sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except OSError as error:
            if error.errno not in (errno.ENOPROTOOPT, errno.EINVAL):
                raise
    except OSError:
        sock.close()
        raise
    return sock


class _ReadAgain(Exception):
    """The answer is incomplete; ask again."""


class Channel:
    """Sends requests to the kernel, one at a time, over one socket, which the first request opens.

    It belongs to the network namespace in which the first request was made. Use it in one thread and one process: not after a
    fork.
    """

    def __init__(self, open_socket: Callable[[], NetlinkSocket] = open_query_socket) -> None:
        """
        :param open_socket: opens the socket, blocking with a timeout
        """
        self._open = open_socket
        self._sock: NetlinkSocket | None = None
        self._port = 0
        self._sequence = random.getrandbits(30)
        self._buffer = _BUFFER
        self._finalizer: weakref.finalize[..., Channel] | None = None

    def close(self) -> None:
        """Close the socket; the next request opens another one."""
        self._sock = None
        if self._finalizer is not None:
            self._finalizer()

    def socket(self) -> NetlinkSocket:
        """The socket, for an ioctl in the channel's network namespace.

        :raises OSError: the socket cannot be opened
        """
        if self._sock is None:
            sock = self._open()
            self._sock = sock
            self._finalizer = weakref.finalize(self, sock.close)
            self._port = sock.getsockname()[0]
        return self._sock

    def ask(self, kind: int, body: bytes) -> Message:
        """Ask a question that has one answer.

        :raises OSError: the kernel refuses, with its errno
        :raises KernelError: the kernel does not answer, or the answer cannot be understood
        """
        return self._retried(kind, 0, body)[0]

    def ask_all(self, kind: int, bodies: Sequence[bytes]) -> list[Message | int]:
        """Ask several questions of one type in one system call; each has one answer.

        :return: the answer to each question, or the errno with which the kernel refuses it
        :raises OSError: the questions could not be sent
        :raises KernelError: the kernel does not answer, or an answer cannot be understood
        """
        found: list[Message | int] = []
        for start in range(0, len(bodies), _BATCH_SIZE):
            found += self._retry(kind, partial(self._exchange_batch, kind, bodies[start : start + _BATCH_SIZE]))
        return found

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Dump a table.

        :return: the payload of each entry
        :raises OSError: the kernel refuses, with its errno
        :raises KernelError: the kernel does not answer, an answer cannot be understood, or the table changes during each attempt
        """
        return [message.payload for message in self._retried(kind, NLM_F_DUMP, body)]

    def tell(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Give an order, and wait until the kernel has carried it out.

        :param flags: netlink flags to add
        :raises OSError: the kernel refuses, with its errno
        :raises KernelError: the kernel does not answer, or the answer cannot be understood
        """
        self._retried(kind, NLM_F_ACK | flags, body)

    def _retried(self, kind: int, flags: int, body: bytes) -> list[Message]:
        return self._retry(kind, partial(self._exchange, kind, flags, body))

    def _retry(self, kind: int, exchange: Callable[[], T]) -> T:
        reason = ""
        for _ in range(_ATTEMPTS):
            try:
                return exchange()
            except _ReadAgain as again:
                reason = str(again)
            # A new socket: the rest of the old answer must not be taken for the new one, nor keep the dump busy (EBUSY).
            self.close()
        raise KernelError(f"netlink: {reason}, {_ATTEMPTS} times in a row", call=f"netlink message type {kind}")

    def _exchange(self, kind: int, flags: int, body: bytes) -> list[Message]:
        try:
            sock = self.socket()
            self._sequence = (self._sequence + 1) & 0x7FFFFFFF
            sock.send(request(kind, flags, self._sequence, body))
            answer = self._answer(sock, flags)
        except OSError as error:
            self._failed(kind, error)
            raise
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return answer

    def _exchange_batch(self, kind: int, bodies: Sequence[bytes]) -> list[Message | int]:
        count, first = len(bodies), self._sequence + 1
        self._sequence += count
        if self._sequence > 0x7FFFFFFF:  # once in 2 ** 31 questions
            first, self._sequence = 1, count
        try:
            sock = self.socket()
            sock.send(b"".join([request(kind, 0, first + number, body) for number, body in enumerate(bodies)]))
            found: dict[int, Message | int] = {}
            for _ in range(count + _STRAY_DATAGRAMS):
                for message in messages(self._receive(sock)):
                    number = message.sequence - first
                    if message.port == self._port and 0 <= number < count and message.kind != NLMSG_NOOP:
                        found[number] = refusal(message.payload) if message.kind in (NLMSG_ERROR, NLMSG_DONE) else message
                if len(found) == count:
                    return [found[number] for number in range(count)]
            raise KernelError("netlink: no answer among many other messages")
        except OSError as error:
            self._failed(kind, error)
            raise

    def _failed(self, kind: int, error: OSError) -> None:
        """Close the socket, which may still get answers to the failed request, and name the request in the error."""
        self.close()
        if isinstance(error, KernelError):
            error.call = f"netlink message type {kind}"

    def _answer(self, sock: NetlinkSocket, asked: int) -> list[Message] | int:
        """The messages of the answer, or the errno of a refusal, after which the channel remains usable."""
        found: list[Message] = []
        interrupted = False
        strays = 0
        while strays < _STRAY_DATAGRAMS:
            strays += 1
            for message in messages(self._receive(sock)):
                if message.sequence != self._sequence or message.port != self._port:
                    continue
                strays = 0
                interrupted |= bool(message.flags & NLM_F_DUMP_INTR)
                if message.kind == NLMSG_NOOP:
                    continue
                if message.kind in (NLMSG_ERROR, NLMSG_DONE):
                    code = refusal(message.payload) if message.payload or message.kind == NLMSG_ERROR else 0
                    if code == errno.EAGAIN or interrupted:
                        raise _ReadAgain("the table changed while it was read")
                    if code:
                        return code
                    if message.kind == NLMSG_ERROR and not found and not asked & NLM_F_ACK:
                        raise KernelError("netlink: a question was acknowledged instead of answered")
                    return found
                found.append(message)
                if not asked & (NLM_F_DUMP | NLM_F_ACK):
                    return found
        raise KernelError("netlink: no answer among many other messages")

    def _receive(self, sock: NetlinkSocket) -> bytes:
        """Receive one datagram of the kernel; empty if another process sent it."""
        try:
            data, _, flags, sender = sock.recvmsg(self._buffer)
        except BlockingIOError:
            raise KernelError(f"netlink: no answer within {REPLY_SECONDS:g} seconds", errno=errno.ETIMEDOUT) from None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise _ReadAgain("the answer overran the socket's buffer") from None
            raise
        if sender[0] != 0:
            return b""
        if flags & _MSG_TRUNC:
            if self._buffer >= _LARGEST_BUFFER:
                raise KernelError(f"netlink: an answer exceeds {self._buffer} bytes")
            self._buffer *= 4
            raise _ReadAgain("an answer was larger than the buffer")
        return data
