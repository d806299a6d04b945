"""The protocols that a backend for an operating system implements.

Only backends ask the system about its network and bind sockets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from bindsock.model.network import FAMILIES

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Sequence

    from bindsock.model.network import Interface, IPAddress, Lookups, Network, Route
    from bindsock.model.policy import Gateway, PolicyRule, Repair
    from bindsock.model.rejection import Departure, Rejection
    from bindsock.model.subflows import Endpoints, Subflow, Traffic


class EventSource(Protocol):
    """A stream of the kernel's network events. An event only says that something changed; the network is then read again."""

    overruns: int
    """How often the kernel dropped events because they were not read in time. Each overrun makes :meth:`drain` return true."""

    urgent: bool
    """Whether an event that the last :meth:`drain` read can change a partial reading. Others wait for a complete reading."""

    def fileno(self) -> int:
        """A descriptor that is readable when events are pending; -1 once closed."""

    def drain(self) -> bool:
        """Read all pending events, without blocking.

        :return: whether any of them can change a decision
        :raises OSError: the source is broken and must be closed; the watcher goes on without it
        """

    def close(self) -> None:
        """Close the descriptor. Closing twice is harmless."""


class Background(Protocol):
    """Makes calls that wait for the system, one after another, while the event loop goes on."""

    @property
    def busy(self) -> bool:
        """Whether a call is being made."""

    def submit(self, call: Callable[[], Any], done: Callable[[Any], object]) -> None:
        """Make a call after all earlier ones.

        :param done: called in the loop's thread with the result, or with the exception
        """

    def in_turn(self, call: Callable[[], object]) -> None:
        """Make a call in the caller's thread, now or soon, so that many of them do not block the event loop."""

    def join(self) -> None:
        """Wait until all calls are made."""


RemovalReason: TypeAlias = Literal["lost", "left", "forbidden"]
"""Why a subflow is ended. See :meth:`PathManager.remove`."""


class PathManager(Protocol):
    """Multipath TCP, on systems that have it: connections whose byte stream goes over several subflows."""

    background: Background | None
    """Makes the calls for which the system takes long. Without it they are made at once, and block the caller."""

    def protocol(self, family: int) -> int | None:
        """The protocol number of multipath stream sockets of an address family, ``None`` if there are none. Never raises."""

    def endpoints(self, done: Callable[[Endpoints | OSError], object]) -> None:
        """Find the addresses from which the system itself adds subflows to new connections.

        :param done: called with the result at once or later, or with an error if the system does not tell
        """

    def subflows(self, sock: socket.socket) -> Sequence[Subflow] | None:
        """The established subflows of a connection, ``None`` if it is not multipath, or no longer. Needs no privilege."""

    def bound(self, sock: socket.socket, subflow: Subflow) -> int | None:
        """The index of the interface to which a subflow is bound for its whole life. The index may be stale. Never raises.

        :return: 0 if it is bound to no interface, or if that is unknown; ``None`` if the subflow has ended
        """

    def silence(self, sock: socket.socket) -> float:
        """How long the peer has been silent, in seconds, while sent data waits to be acknowledged; 0 if no data waits."""

    def register(self, sock: socket.socket) -> None:
        """Begin to follow a connection, at its present local address. :meth:`release` ends that."""

    def add(self, sock: socket.socket, interface: Interface, failed: Callable[[OSError], object]) -> IPAddress:
        """Order a subflow over an interface, unless there is one. It is established a round trip later, if at all.

        :param failed: called, at once or later, with the errors that are not raised
        :return: the local address of the subflow
        :raises PermissionError: this process lacks the privilege
        :raises OSError: the system refused for another reason
        """

    def arrived(self, sock: socket.socket, address: IPAddress) -> None:
        """Note that a subflow with this local address has joined and carries the connection from now on.

        It gets as large a receive buffer as the whole connection has.

        :raises OSError: the connection has ended
        """

    def prompt(self, sock: socket.socket, address: IPAddress, failed: Callable[[OSError], object]) -> bool:
        """Send the peer a packet by the subflow with a local address, so that it sends what it has kept while it had no subflow.

        :param failed: called, at once or later, with the errors that are not raised
        :return: false if the peer has not confirmed the subflow yet
        :raises OSError: the connection has ended
        """

    def traffic(self, sock: socket.socket, address: IPAddress) -> Traffic | None:
        """What is under way by the established subflows with a local address; ``None`` if there are none. Never raises.

        It needs no privilege.
        """

    def set_backup(
        self, sock: socket.socket, address: IPAddress, done: Callable[[bool | OSError], object], *, backup: bool
    ) -> None:
        """Tell the system and the peer whether the subflows with a local address are backups (MP_PRIO, RFC 8684 3.3.8).

        As long as another subflow works, both send new data only by those that are not. The peer may miss it.

        :param done: called, at once or later, with whether they have been told, or with the errors that are not raised; not if
            the event loop ends before
        :raises OSError: the connection has ended
        """

    def remove(
        self, sock: socket.socket, address: IPAddress, why: RemovalReason, done: Callable[[bool | OSError], object]
    ) -> bool | None:
        """Order the end of all subflows that have a local address, established or not.

        :param why: ``"lost"``: they can carry nothing any more; ``"forbidden"``: they must not carry anything; ``"left"``: the
            connection has moved to another address, so subflows that the system itself made are left alone
        :param done: called with the result, or with an error, if it is not known at once
        :return: whether they are to end; false if they are left alone, because they are the system's, or if they are lost and
            the peer cannot be told at the moment; ``None`` if it is not known yet, never for ``"forbidden"``
        :raises OSError: as :meth:`add` does
        """

    def retain(self, interfaces: Collection[int]) -> None:
        """Undo changes to the system that were made for interfaces that no longer exist. Never raises.

        :param interfaces: the indices of the interfaces that exist
        """

    def release(self, sock: socket.socket) -> bool:
        """Stop following a connection. Never raises.

        :return: whether there are changes to the system to undo, so that :meth:`sweep` should be called later
        """

    def sweep(self, done: Callable[[bool], object]) -> None:
        """Undo what is not needed any more. Never raises.

        :param done: called, at once or later, with whether something is left that must be undone later
        """


class Administration(Protocol):
    """The policy rules and routing tables as an administrator sees them, on systems that have them.

    Every method raises :class:`KernelError` if an answer cannot be understood, and :class:`OSError` if the system refuses.
    """

    def rules(self) -> Sequence[PolicyRule]:
        """The policy rules of both families, in the order in which they are tried."""

    def routes(self) -> Sequence[Route]:
        """The routing tables of both families, except the local table."""

    def firewall(self, version: int) -> Sequence[str]:
        """The places in this host's firewall that drop, reject or redirect some of the packets that it sends.

        What packets they match is not examined.

        :param version: the IP version, 4 or 6
        :return: one phrase for each place
        """

    def filters_strictly(self, interface: Interface) -> bool:
        """Whether IPv4 answers to sockets bound to the interface are dropped while the default route is by another one."""

    def gateway(self, interface: Interface, family: socket.AddressFamily) -> Gateway | None:
        """The gateway by which the interface reaches the Internet, ``None`` if nothing names one. Sends nothing."""

    mark: int
    """The firewall mark for every socket that the kernel object binds from now on, and for route lookups; 0 for none.
    All users of one kernel object share the mark."""

    repairer: Repairer | None
    """Called with each reading; may repair routes that are missing."""

    def repairs(self, *, kept: bool = False) -> Repairs:
        """Open an object that makes repairs in this network namespace. The caller closes it.

        :param kept: keep the repairs until they are removed; otherwise they are removed when the process ends, or by the next
            process that makes repairs
        """


class Repairs(Protocol):
    """Makes, finds and removes repairs: default routes for sockets that are bound to an interface, each in its own table.

    Changes need CAP_NET_ADMIN. Methods raise as those of :class:`Administration` do.
    """

    def existing(self) -> Sequence[Repair]:
        """The complete repairs in the system, whichever process made them."""

    def make(self, repair: Repair) -> None:
        """Make a repair: the route first, so that no rule ever leads to an empty table."""

    def remove(self, repair: Repair) -> None:
        """Remove a repair: the rules first."""

    def remove_all(
        self, *, orphans: bool = False, interface: str | None = None, families: Sequence[socket.AddressFamily] = FAMILIES
    ) -> int:
        """Remove all repairs, complete or not.

        :param orphans: only remove those that a dead process left behind; nothing while another process makes repairs
        :param interface: only remove those of the interface of that name
        :param families: only remove those of these address families
        :return: how many rules and routes were removed
        """

    def close(self) -> None:
        """Close the descriptors. Closing twice is harmless."""


class Repairer(Protocol):
    """Repairs missing routes after each reading."""

    problem: str
    """Why the last repair failed; empty if it did not."""

    def repair(self, network: Network) -> bool:
        """Make the repairs that a reading shows to be needed. Never raises :class:`OSError`.

        :return: whether anything was changed, so that the network must be read again
        """


class Kernel(Protocol):
    """What bindsock needs of an operating system."""

    @property
    def administration(self) -> Administration | None:
        """Policy rules and routing tables; ``None`` on systems without policy rules."""

    @property
    def multipath(self) -> PathManager | None:
        """Multipath TCP; ``None`` where programs cannot use it."""

    binding_filters_ingress: bool
    """Whether a socket that is bound to an interface receives from that interface only. If not, a datagram socket without a
    peer still receives answers to what it sent before it was moved."""

    def network(self, *, partial: bool = False) -> Network:
        """Read the machine's network.

        :param partial: read quickly, since a socket waits to be moved: interfaces, addresses and default routes must be right,
            specific routes may be those of the last reading; a complete reading will follow
        :raises KernelError: the system's answer cannot be understood
        :raises OSError: a call failed
        """

    def lookups(self, network: Network) -> Lookups:
        """The system's route lookups, for decisions that are based on a reading.

        The object is equal to the one before as long as all answers of that one still hold. A decision that was made with an
        unequal object must be made again. A lookup may raise :class:`OSError`.

        :param network: the last reading
        """

    def routes(self, family: socket.AddressFamily | None = None, table: int | None = None) -> Sequence[Route]:
        """The routing tables, for people to read. No decision needs them, and they may be large.

        :param family: one address family; both if ``None``
        :param table: one routing table, on systems that have several; all if ``None``
        :raises KernelError: the system's answer cannot be understood
        :raises OSError: a call failed
        """

    def events(self) -> Sequence[EventSource]:
        """Open the event sources. The caller closes them.

        :raises OSError: none could be opened
        """

    def suspended(self) -> float:
        """How many seconds the machine has slept since it was started. Only a sleep makes it grow."""

    def bind(self, sock: socket.socket, interface: Interface) -> None:
        """Bind a fresh socket to the interface, before its bind() and connect(), so that its packets leave by the interface.

        :raises BindFailed: with the call and the errno; the caller must close the socket
        """

    def rebind(
        self,
        sock: socket.socket,
        interface: Interface,
        *,
        peer: tuple[Any, ...] | None = None,
        port: int | None = None,
        replaceable: bool = False,
    ) -> None:
        """Move a datagram socket to the interface: same descriptor, same port, connected to the same peer as before.

        Moving it to the interface that it is already bound to is harmless and makes the system choose the source address again.

        :param peer: the address to connect to if an earlier, failed call has left the socket disconnected; otherwise the
            socket's own peer is used. A stream socket that is connecting to it starts again, if the system can do that
        :param port: the local port, in the same case
        :param replaceable: whether the system chose the port, and another socket could take over if it is taken
        :raises BindFailed: a step failed; the socket is never left unbound: it stays bound, or cannot send
        """

    def bind_port(self, sock: socket.socket, address: tuple[Any, ...], port: int) -> None:
        """Bind a datagram socket to an address, and to the port that the system chose for it, or for the socket that it replaces.

        The socket must not be bound to a port yet. :meth:`rebind` then moves it with less effort.

        :param address: as for ``bind()``; its port does not count
        :raises OSError: another socket has the port (EADDRINUSE), or the address is not available
        """

    def check_port(
        self,
        sock: socket.socket,
        interface: Interface,
        *,
        keeps_address: bool = False,
        replaceable: bool = False,
        sharing: Sequence[socket.socket] = (),
    ) -> None:
        """Check, before a bound datagram socket is moved, that no other socket has its port on the new interface.

        Linux does not check this (``net/core/sock.c``, sock_bindtoindex_locked), and would give the answers for one socket to the
        other. Sockets with SO_REUSEADDR or SO_REUSEPORT may share their port: they are not checked.

        :param interface: the new interface
        :param keeps_address: whether the socket keeps its local address, too, which the program has chosen
        :param replaceable: whether :meth:`rebind` may find out itself, and leave the socket without a port
        :param sharing: other sockets with which it may share the port
        :raises BindFailed: another socket has the port (EADDRINUSE), or the socket is closed
        """

    def unbind(self, sock: socket.socket, *, peer: tuple[Any, ...] | None = None, port: int | None = None) -> None:
        """Unbind a socket from its interface. A datagram socket stays connected, with the source address of its new route.

        :param peer: the address to connect to if an earlier, failed call has left the socket disconnected
        :param port: the local port, in the same case
        :raises BindFailed: the system forbids it, or another socket has the port
        """

    def bound(self, sock: socket.socket) -> int | None:
        """The index of the interface that the socket is bound to, or ``None``. The index may be stale."""

    def chosen_options(self, sock: socket.socket) -> frozenset[str]:
        """The names of the options that are set by which a program chooses a socket's interface or routes. Never raises.

        They are ``SO_MARK``, ``IP_UNICAST_IF``, ``IPV6_UNICAST_IF``, ``IP_MULTICAST_IF`` and ``IPV6_MULTICAST_IF``.
        """

    def has_route(self, interface: Interface, destination: IPAddress) -> bool:
        """Whether a socket bound to the interface has a route to the destination."""

    def route_hint(self, interface: Interface, destination: IPAddress) -> str:
        """How to get a route to the destination by the interface: one sentence for the person who runs the machine."""

    def activity(self, sock: socket.socket) -> object:
        """A value that changes whenever data moves over the stream socket; ``None`` if the system does not tell."""

    def dropped(self, interface: Interface) -> int | None:
        """Packets that the interface's device accepted and then dropped, from any program. Never raises.

        :return: a count that only grows; ``None`` if it is unknown
        """

    def first_hop_answers(self, interface: Interface, gateway: IPAddress) -> bool | None:
        """Whether the gateway's link-layer address is known, so that packets to it leave the machine at once. Never raises.

        :return: ``None`` if it is unknown
        """

    def ask_first_hop(self, interface: Interface, gateway: IPAddress) -> None:
        """Make the system ask for the gateway's link-layer address, unless it knows it. Never raises."""

    def rejection(self, sock: socket.socket) -> Rejection | None:
        """The ICMP message that ended a socket's connect. Call it before the socket is closed, and once. Never raises.

        :return: ``None`` if there was none, or if the system does not tell
        """

    def departure(self, sock: socket.socket, address: Any) -> Departure:
        """Whether a packet of a connect leaves this host, or its firewall drops or answers it. Never raises.

        It makes another attempt to connect, whose packet gets no further than the first hop.

        :param sock: a fresh stream socket, bound as the socket of the connection was; close it afterwards
        :param address: the peer's address
        """

    def unsent(self, sock: socket.socket) -> int:
        """An upper bound of the datagrams that the socket has accepted and its device has not sent yet. Never raises.

        :return: 0 if it is unknown, too
        """

    def abort(self, sock: socket.socket) -> None:
        """End a connected stream socket at once and discard data in flight. The descriptor stays open.

        Callers that wait on the socket are woken, with an error if the system can do that.

        :raises OSError: the call failed; the socket may not have been connected any more
        """

    def needs_lingering_close(self, sock: socket.socket) -> bool:
        """Whether, if the connection were closed now, its last acknowledgement could leave by another interface than the one it
        is bound to. Never raises.

        :return: false for a socket that is not connected, or closed, too
        """

    def has_finished(self, sock: socket.socket) -> bool:
        """Whether the peer has ended its stream, and has acknowledged everything from here: then nothing can be lost any more,
        whatever becomes of the path. What the peer has sent may still be unread. Never raises.

        :return: false for a connection that ended with an error, or if it is unknown, too
        """

    def set_user_timeout(self, sock: socket.socket, seconds: float) -> None:
        """Let a stream socket fail when its peer has not answered for this long, even if no data is sent (RFC 5482).

        It detects paths that die without an event, beyond the first hop. An idle peer is probed now and then.

        :raises OSError: the system refused
        """

    def probe(self, sock: socket.socket) -> Callable[[], None]:
        """Let a connected stream socket ask its peer once a second, while it is idle, whether the peer still has the connection.
        A peer that does not ends it with a reset.

        :return: ends that. It holds the socket weakly, and never raises
        :raises OSError: the system refused
        """

    def close(self) -> None:
        """Close the descriptors that are kept between calls. The next call opens them again."""
