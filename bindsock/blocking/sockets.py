"""Blocking sockets that leave by the effective interface, for threads and programs without an event loop.

.. code-block:: python

    with bindsock.blocking.create_connection(("example.com", 443), timeout=10) as sock:
        ...

Each connection is decided, bound and checked like those of the asyncio functions, from its own reading of the network. Threads
have no watcher. But if an event loop with a bindsock factory runs in the process (:class:`bindsock.EventLoop`, or any loop on
which bindsock's functions have been called), this loop follows the connection and ends it when its path is gone: a thread that
waits on it is woken with an error. (Before Python 3.13, a socket that :mod:`ssl` has wrapped treats any reset as an end of file,
python/cpython#115627.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from bindsock import kernel as kernels
from bindsock.blocking.lingering_close import close_lingering
from bindsock.default import find_running
from bindsock.dial.binding import (
    bind_or_close,
    check_egress,
    check_local_address,
    connect_error,
    mark_as_preferred,
    set_dead_after,
    settle_source,
)
from bindsock.dial.chosen import on_own_uplink, own_address
from bindsock.dial.lingering_close import duplicate_if_needed
from bindsock.dial.nat64 import is_for_translator, log_unknown, synthesized
from bindsock.dial.resolving import address_of, check_host
from bindsock.factory import connector_of
from bindsock.model.decision import path_of, pinned_to
from bindsock.model.network import FAMILIES, unmapped
from bindsock.model.preferences import Preferences, preferences_or_default
from bindsock.netmon.no_interface import no_effective_interface
from bindsock.options import ConnectOptions, known_keywords_only
from bindsock.routing.effective import Decider
from bindsock.stream.descriptors import follow_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bindsock.dial.resolving import AddrInfo
    from bindsock.errors import InterfaceChanged
    from bindsock.kernel import EventSource, Kernel
    from bindsock.model.decision import Decision
    from bindsock.model.network import IPAddress, Network
    from bindsock.options import BetterPath

_DEFAULT_TIMEOUT: Any = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]


@known_keywords_only
def create_connection(
    address: tuple[str, int],
    timeout: float | None = _DEFAULT_TIMEOUT,
    source_address: tuple[str, int] | None = None,
    *,
    all_errors: bool = False,
    interface: str | None = None,
    preferences: Preferences | None = None,
    better_path: BetterPath = "auto",
    dead_after: float | None = None,
    kernel: Kernel | None = None,
) -> BlockingSocket:
    """:func:`socket.create_connection`, over the effective interface, bypassing VPN tunnels.

    :param address: host and port
    :param timeout: seconds for each attempt, and for later calls on the socket; ``socket.getdefaulttimeout()`` unless given
    :param source_address: a local address and port; the address must belong to the interface
    :param all_errors: raise an ``ExceptionGroup`` with the errors of all attempts, instead of the last error
    :param interface: the name of the only interface to use; detected unless given
    :param preferences: how to choose among interfaces
    :param better_path: what the event loop that follows it does with a working connection when another interface is better
    :param dead_after: seconds without an answer from the peer after which the connection fails; no limit unless given
    :param kernel: the kernel to ask; that of the running system unless given
    :raises NoEffectiveInterface: no address of the host has an interface that may be used
    :raises NoRoute: no route to the host leaves by the interface
    :raises BindFailed: the system refused to bind, or the local address belongs to another interface
    :raises EgressMismatch: the system chose the address of a tunnel
    :raises OSError: resolving the name or connecting failed
    """
    connector = BlockingConnector(interface, preferences, better_path, dead_after, kernel)
    return connector.create_connection(address, timeout, source_address, all_errors=all_errors)


class BlockingSocket(socket.socket):
    """A socket whose methods raise :class:`InterfaceChanged` after the connection was ended because its path is gone."""

    error: InterfaceChanged | None = None
    """Why the connection was ended; ``None`` if it was not."""
    _unfollow: Callable[[], object] | None = None
    _kernel: Kernel | None = None

    def recv(self, *args: Any) -> bytes:
        with self._explained():
            data = super().recv(*args)
        return data or self._unless_ended(data)

    def recv_into(self, *args: Any, **options: Any) -> int:
        with self._explained():
            count = super().recv_into(*args, **options)
        return count or self._unless_ended(count)

    def recvfrom(self, *args: Any) -> tuple[bytes, Any]:
        with self._explained():
            received = super().recvfrom(*args)
        return received if received[0] else self._unless_ended(received)

    def send(self, *args: Any) -> int:
        with self._explained():
            return super().send(*args)

    def sendall(self, *args: Any) -> None:
        with self._explained():
            super().sendall(*args)

    def detach(self) -> int:
        """Detach the socket from its descriptor, which stays open. The connection is still followed."""
        self._unfollow = self._kernel = None
        return super().detach()

    def close(self) -> None:
        kernel = self._kernel
        lingering = duplicate_if_needed(kernel, self) if kernel is not None and self.fileno() != -1 else None
        super().close()
        if self.fileno() != -1:  # a file of makefile() is still open
            if lingering is not None:
                lingering.close()
            return
        if kernel is not None and lingering is not None:
            close_lingering(lingering, kernel)
        if self._unfollow is not None:
            unfollow, self._unfollow = self._unfollow, None
            unfollow()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._raise_ended(error)
            raise

    def _unless_ended(self, nothing: Any) -> Any:
        """Return the empty result, or raise the error if this is not a real end of file."""
        self._raise_ended(None)
        return nothing

    def _raise_ended(self, cause: OSError | None) -> None:
        if self.error is not None:
            raise self.error from cause


@dataclass(frozen=True, slots=True)
class BlockingConnector:
    """Connects blocking sockets, with the same options for many connections. Can be used from any thread.

    :param interface: the name of the only interface to use; detected unless given
    :param preferences: how to choose among interfaces
    :param better_path: what the event loop that follows it does with a working connection when another interface is better
    :param dead_after: seconds without an answer from the peer after which a connection fails; no limit unless given
    :param kernel: the kernel to ask, which binds this object to one thread; that of the running system unless given
    """

    interface: str | None = None
    preferences: Preferences | None = None
    better_path: BetterPath = "auto"
    dead_after: float | None = None
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        ConnectOptions(interface=self.interface, better_path=self.better_path, dead_after=self.dead_after)  # checks them
        preferences_or_default(self.preferences)

    @known_keywords_only
    def create_connection(
        self,
        address: tuple[str, int],
        timeout: float | None = _DEFAULT_TIMEOUT,
        source_address: tuple[str, int] | None = None,
        *,
        all_errors: bool = False,
    ) -> BlockingSocket:
        """See :func:`create_connection`."""
        host, port = address
        check_host(host)
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        errors: list[OSError] = []
        with self._asking() as kernel:
            local = ip_address(source_address[0]) if source_address is not None and source_address[0] else None
            network, decisions = self._decisions(kernel, host, infos, _seconds(timeout), local, translate=self.kernel is None)
            for (family, kind, proto, _, sockaddr), decision in decisions:
                sock = BlockingSocket(family, kind, proto)
                try:
                    if timeout is not _DEFAULT_TIMEOUT:
                        sock.settimeout(timeout)
                    self._bind(kernel, sock, decision, address_of(sockaddr))
                    if source_address is not None:
                        if local is not None:
                            check_local_address(decision, [local])
                        sock.bind(source_address)
                    self._connect(kernel, socket.socket.connect, sock, sockaddr, decision, network)
                except OSError as error:
                    sock.close()
                    errors.append(error)
                except BaseException:
                    sock.close()
                    raise
                else:
                    if decision.interface is not None and family == socket.AF_INET6:
                        sock._kernel = kernel
                    return sock
        if all_errors:
            raise ExceptionGroup("create_connection failed", errors)
        raise errors[-1]

    @known_keywords_only
    def connect(
        self,
        sock: socket.socket,
        address: Any,
        connect: Callable[[socket.socket, Any], object] = socket.socket.connect,
    ) -> None:
        """Bind a new stream or datagram socket to the interface for the address, connect it, and let a running loop follow it.

        The socket is closed if it cannot be bound, or if it gets the address of a tunnel.

        :param sock: a socket that is neither bound nor connected
        :param address: the destination, with a numeric host
        :param connect: connects the socket
        :raises ValueError: the host is a name
        :raises OSError: as :func:`create_connection`
        """
        destination = address_of(address)
        info: AddrInfo = (sock.family, sock.type, sock.proto, "", address)
        with self._asking() as kernel:
            try:
                network, ((_, decision),) = self._decisions(
                    kernel, str(destination), [info], sock.gettimeout(), own_address(sock)
                )
            except BaseException:
                sock.close()
                raise
            self._bind(kernel, sock, decision, destination)
            self._connect(kernel, connect, sock, address, decision, network)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Kernel]:
        kernel = self.kernel if self.kernel is not None else kernels.current()
        try:
            if self.preferences is not None:
                mark_as_preferred(kernel, self.preferences)
            yield kernel
        finally:
            kernel.close()

    def _decisions(
        self,
        kernel: Kernel,
        host: str,
        infos: Sequence[AddrInfo],
        timeout: float | None,
        local: IPAddress | None,
        *,
        translate: bool = False,
    ) -> tuple[Network, list[tuple[AddrInfo, Decision]]]:
        """The decision for each address that may be used, and the reading of the network.

        :param local: the local address of the socket, if it has one or will get one
        :param translate: also use the addresses behind a NAT64 translator, if only that reaches the host
        """
        preferences = preferences_or_default(self.preferences)
        policy = preferences.on_no_interface
        # Blocking sockets belong to threads without an event loop, so the deadline is one of the system's clock.
        deadline = time.monotonic() + timeout if timeout is not None else None
        # The event sources are opened before the reading, so that no change is missed in between.
        sources = list(kernel.events()) if policy == "wait" else []
        try:
            while True:
                network = kernel.network()
                read = Decider(network, preferences, interface=self.interface, lookups=kernel.lookups(network))
                decider = on_own_uplink(read, local)
                decisions = [(info, decider.decide(unmapped(address_of(info[4])))) for info in infos]
                usable = [(i, d) for i, d in decisions if d.interface is not None or d.unbound or policy == "unbound"]
                if not usable and translate and is_for_translator(host, socket.AF_UNSPEC, infos, read):
                    by_translator = self._translated(host, infos, preferences, timeout)
                    translated = [(info, read.decide(address_of(info[4]))) for info in by_translator]
                    usable = [(i, d) for i, d in translated if d.interface is not None]
                if usable:
                    return decider.network, usable
                error = no_effective_interface(host, tuple(d for _, d in decisions), kernel, decider.network)
                if policy == "error":
                    raise error
                if not _wait_for_events(sources, deadline):
                    raise TimeoutError(errno.ETIMEDOUT, f"timed out waiting for an interface: {error}") from error
        finally:
            for source in sources:
                source.close()

    def _translated(
        self, host: str, infos: Sequence[AddrInfo], preferences: Preferences, timeout: float | None
    ) -> list[AddrInfo]:
        """The IPv6 addresses that reach the host through a translator; empty if there is none."""
        from bindsock.resolvers.nat64 import find_prefixes

        # bindsock's resolvers need asyncio, and this thread may already run an event loop.
        with ThreadPoolExecutor(1) as thread:
            try:
                return synthesized(infos, thread.submit(find_prefixes, preferences, self.interface, timeout).result())
            except OSError as error:
                log_unknown(host, error)
                return []

    def _bind(self, kernel: Kernel, sock: socket.socket, decision: Decision, destination: IPAddress) -> None:
        try:
            set_dead_after(kernel, sock, self.dead_after)
        except BaseException:
            sock.close()
            raise
        bind_or_close(kernel, sock, decision, unmapped(destination))

    def _connect(
        self,
        kernel: Kernel,
        connect: Callable[[socket.socket, Any], object],
        sock: socket.socket,
        address: Any,
        decision: Decision,
        network: Network,
    ) -> None:
        try:
            _connect_settled(kernel, connect, sock, address, decision, network)
        except (BlockingIOError, InterruptedError):
            # A non-blocking socket already has its local address, and is followed like any other.
            self._connected(kernel, sock, address, decision, network)
            raise
        except OSError as error:
            raise connect_error(kernel, sock, error, decision, address, kernel.network) from None
        self._connected(kernel, sock, address, decision, network)

    def _connected(self, kernel: Kernel, sock: socket.socket, address: Any, decision: Decision, network: Network) -> None:
        path = path_of(decision)
        if path is None:
            return
        peer = unmapped(address_of(address))
        try:
            check_egress(kernel, decision, network, peer, unmapped(address_of(sock.getsockname())))
        except BaseException:
            sock.close()
            raise
        running = find_running() if sock.type == socket.SOCK_STREAM else None
        if running is None:
            return
        loop, factory = running
        unfollow = follow_descriptor(
            loop,
            lambda: connector_of(factory).watcher,
            sock,
            peer,
            path,
            better_path=self.better_path,
            interface=self.interface or pinned_to(decision),
        )
        if isinstance(sock, BlockingSocket):
            sock._unfollow = unfollow


BlockingConnector.__init__ = known_keywords_only(BlockingConnector.__init__)  # type: ignore[method-assign]


def _seconds(timeout: float | None) -> float | None:
    return socket.getdefaulttimeout() if timeout is _DEFAULT_TIMEOUT else timeout


def _connect_settled(
    kernel: Kernel,
    connect: Callable[[socket.socket, Any], object],
    sock: socket.socket,
    address: Any,
    decision: Decision,
    network: Network,
) -> None:
    """Connect, and check the local address before anything waits for the peer.

    :raises BlockingIOError: a non-blocking socket is connecting
    :raises OSError: the connect failed
    """
    chosen = own_address(sock) is not None
    timeout = sock.gettimeout()
    waits = (
        timeout != 0
        and decision.interface is not None
        and sock.family in FAMILIES
        and sock.type == socket.SOCK_STREAM
        and not any(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16))  # the system's own timeout for connect()
    )
    under_way: OSError | None = None
    if waits:
        sock.settimeout(0)
    try:
        try:
            connect(sock, address)
        except (BlockingIOError, InterruptedError) as error:
            under_way = error
        settle_source(kernel, sock, decision, network, address, chosen=chosen)
    finally:
        if waits and sock.fileno() != -1:
            sock.settimeout(timeout)
    if under_way is None:
        return
    if not waits:
        raise under_way
    _wait_until_connected(sock, timeout)


def _wait_until_connected(sock: socket.socket, timeout: float | None) -> None:
    """Wait as a blocking ``connect()`` does.

    :param timeout: in seconds
    :raises OSError: the connect failed
    """
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    if not poll.poll(None if timeout is None else timeout * 1000):
        raise TimeoutError("timed out")
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _wait_for_events(sources: Sequence[EventSource], deadline: float | None) -> bool:
    """Wait until the kernel reports a relevant event.

    :param deadline: in monotonic seconds of the system's clock
    :return: false if the deadline has passed
    """
    poll = select.poll()
    by_descriptor = {source.fileno(): source for source in sources}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return False
        ready = poll.poll(None if left is None else left * 1000)
        if any(by_descriptor[descriptor].drain() for descriptor, _ in ready):
            return True
