"""Two network namespaces connected by two cables: a host with the uplinks ``wifi0`` and ``eth0``, and the world at the other end.

Only descriptors hold the namespaces, which have no name: they always disappear with the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import pickle
import select
import socket
import struct
import subprocess
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bindsock.kernel.linux import LinuxKernel
from bindsock.testing.lab._netlink import Netlink
from tests.unprivileged import drop_privileges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bindsock.kernel.linux.rtnetlink.events import RouteEvents

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"
_TUNSETIFF = 0x400454CA
_PR_SET_NO_NEW_PRIVS = 38
_IP_PKTINFO = 8
_IPV6_RECVPKTINFO = 49


def _libc(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)


def new_namespace() -> int:
    """Make a new network namespace. Returns its descriptor.

    :raises OSError: this process is not allowed to
    """
    result: list[int | OSError] = []

    def make() -> None:
        try:
            _libc("unshare", _CLONE_NEWNET)
            result.append(os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(result[0], OSError):
        raise result[0]
    return result[0]


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Move this thread into the namespace for a block. Sockets that it opens there stay in this namespace."""
    before = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _libc("setns", namespace, _CLONE_NEWNET)
        try:
            yield
        finally:
            _libc("setns", before, _CLONE_NEWNET)
    finally:
        os.close(before)


def ip(*lines: str, tolerant: bool = False) -> None:
    """Run lines of iproute2 in this thread's namespace. A line may begin with ``-6``, as in a shell.

    An IPv6 address that is added ``nodad`` is local when this returns.
    """
    for six, group in itertools.groupby(lines, lambda line: line.startswith("-6 ")):
        batch = "\n".join(line.removeprefix("-6 ") for line in group)
        command = ["ip", *(["-6"] if six else []), *(["-force"] if tolerant else []), "-batch", "-"]
        done = subprocess.run(command, input=batch, text=True, capture_output=True, check=False)
        if done.returncode and not tolerant:
            raise AssertionError(f"ip: {done.stderr} in {lines}")
    with Netlink() as netlink:
        for line in lines:
            netlink.wait_until_added(line)


def sysctl(name: str, value: int) -> None:
    """Set a ``net.`` variable of this thread's namespace."""
    Path("/proc/sys/net", *name.split("/")).write_text(str(value), "ascii")


def until(events: RouteEvents, condition: Callable[[], bool]) -> None:
    """Read events until the condition holds: linkwatch may delay a change of carrier by a second."""
    for _ in range(100):
        if condition():
            return
        assert select.select([events], [], [], 60)[0], "no event for a minute"
        events.drain()
    raise AssertionError("100 events, and it never came")


def until_running(*names: str) -> None:
    """Wait until interfaces of this thread's namespace send packets.

    An interface has carrier at once, but the kernel activates its queue, and announces that, only when linkwatch's turn comes
    (linux net/core/link_watch.c, linkwatch_do_dev). Until then it drops what is sent.
    """
    kernel = LinuxKernel()
    (events,) = kernel.events()

    def running() -> bool:
        network = kernel.network()
        return all((found := network.named(name)) is not None and found.running and not found.dormant for name in names)

    try:
        until(events, running)
    finally:
        events.close()
        kernel.close()


class Device:
    """A tun or tap device that this process holds open, so that it has carrier."""

    def __init__(self, name: str, *, tap: bool = False) -> None:
        self.name = name
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        flags = (0x0002 if tap else 0x0001) | 0x1000  # IFF_TAP or IFF_TUN, IFF_NO_PI
        fcntl.ioctl(self.fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class World:
    """The two namespaces. The thread that makes it is in the host.

    The world's own address is 10.9.0.10 / fd10:9::10. ``wifi0`` is 10.1.0.2 with metric 600, ``eth0`` 10.2.0.2 with 700.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.peer = new_namespace()
        stack.callback(os.close, self.peer)
        host = new_namespace()
        stack.callback(os.close, host)
        with inside(self.peer):
            ip("link set lo up", "addr add 10.9.0.10/32 dev lo", "addr add fd10:9::10/128 dev lo nodad")
            # Use up the first indexes: if both ends of a cable had the same index, linkwatch would not take them for a pair, and
            # would delay carrier changes by up to a second (linux net/core/link_watch.c, linkwatch_urgent_event).
            ip("link add x0 type veth peer name x1", "link del x0")
        stack.enter_context(inside(host))
        ip("link set lo up")
        for number, name in ((1, "wifi0"), (2, "eth0")):
            self._cable(number, name)
        until_running("wifi0", "eth0")
        with inside(self.peer):
            until_running("wifi0", "eth0")
        ip(
            "route add default via 10.1.0.1 dev wifi0 metric 600",
            "route add default via 10.2.0.1 dev eth0 metric 700",
            "-6 route add default via fd10:1::1 dev wifi0 metric 600",
            "-6 route add default via fd10:2::1 dev eth0 metric 700",
        )

    def _cable(self, number: int, name: str) -> None:
        command = ["ip", *f"link add {name} type veth peer name {name} netns /proc/self/fd/{self.peer}".split()]
        subprocess.run(command, check=True, pass_fds=[self.peer])
        sysctl(f"ipv6/conf/{name}/accept_ra", 0)
        ip(
            f"link set {name} addrgenmode none",
            f"addr add 10.{number}.0.2/24 dev {name}",
            f"addr add fd10:{number}::2/64 dev {name} nodad",
            f"addr add fe80::{number}:2/64 dev {name} nodad",
            f"link set {name} up",
        )
        with inside(self.peer):
            ip(
                f"link set {name} addrgenmode none",
                f"addr add 10.{number}.0.1/24 dev {name}",
                f"addr add fd10:{number}::1/64 dev {name} nodad",
                f"addr add fe80::{number}:1/64 dev {name} nodad",
                f"link set {name} up",
            )

    def device(self, name: str, *, tap: bool = False) -> Device:
        """A tun or tap in the host."""
        device = Device(name, tap=tap)
        self.stack.callback(device.close)
        return device

    def tunnel(self) -> Device:
        """``tun0``, up, 10.66.0.2 / fd10:66::2: a VPN's device without its routes."""
        device = self.device("tun0")
        ip(
            "link set tun0 addrgenmode none",
            "addr add 10.66.0.2/24 dev tun0",
            "addr add fd10:66::2/64 dev tun0 nodad",
            "link set tun0 up",
        )
        until_running("tun0")
        return device

    def client(self, family: int, kind: int = socket.SOCK_DGRAM, protocol: int = 0) -> socket.socket:
        """A socket in the host, closed at the end of the test."""
        sock = socket.socket(family, kind, protocol)
        self.stack.callback(sock.close)
        sock.settimeout(20)
        return sock

    def server(self, family: int, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        """A socket in the world, bound to its own address and a free port."""
        with inside(self.peer):
            sock = self.client(family, kind)
        if family == socket.AF_INET:
            sock.bind(("10.9.0.10", 0))
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            sock.bind(("fd10:9::10", 0))
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return sock


class Received(NamedTuple):
    """A datagram as the world saw it."""

    data: bytes
    source: str
    port: int
    interface: str
    """The end of the cable by which it arrived; both ends have the same name."""

    sender: tuple[Any, ...]


def received(world: World, server: socket.socket) -> Received:
    """The next datagram."""
    data, ancillary, _, sender = server.recvmsg(2048, 256)
    ((_, _, info),) = ancillary
    index = struct.unpack_from("=i", info, 0 if server.family == socket.AF_INET else 16)[0]
    with inside(world.peer):
        return Received(data, sender[0].split("%")[0], sender[1], socket.if_indextoname(index), sender)


def carrier(world: World, name: str, on: bool) -> None:
    """Plug or unplug the cable of the host's interface, by setting its other end up or down."""
    with inside(world.peer):
        ip(f"link set {name} {'up' if on else 'down'}")


def as_nobody(function: Callable[[], T]) -> T:
    """Call the function in a child process without any privilege, in this namespace. Returns its result.

    :raises AssertionError: the function raised an error
    """
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about fork() with threads: this child only runs Python and returns
        child = os.fork()
    if child == 0:
        status = 1
        try:
            result: tuple[bool, Any]
            try:
                drop_privileges()
                _libc("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                result = True, function()
            except BaseException as error:  # noqa: BLE001
                result = False, f"{type(error).__name__}: {error}"
            os.write(write, pickle.dumps(result))
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with open(read, "rb") as stream:
        data = stream.read()
    os.waitpid(child, 0)
    ok, value = pickle.loads(data)
    assert ok, value
    return value  # type: ignore[no-any-return]


def in_this_process(function: Callable[[], T]) -> T:
    """Call the function in this process: the privileged counterpart of :func:`as_nobody`."""
    return function()
