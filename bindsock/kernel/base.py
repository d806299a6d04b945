"""The seam to the operating system. Everything that asks the system about its network, or binds a socket, is below here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Sequence

    from bindsock.model.network import Interface, IPAddress, Lookups, Network, Route
    from bindsock.model.policy import Gateway, PolicyRule, Repair
    from bindsock.model.rejection import Departure, Rejection
    from bindsock.model.subflows import Endpoints, Subflow


class EventSource(Protocol):
    """A stream of the kernel's network events. Events only say "something changed": what did is read anew."""

    overruns: int
    """How often the kernel dropped events because nobody had read them. Each makes :meth:`drain` return true."""

    urgent: bool
    """Whether any of what the last :meth:`drain` read can change a partial reading; the rest can wait for a complete one."""

    def fileno(self) -> int:
        """A descriptor that is readable when events wait; -1 once closed."""

    def drain(self) -> bool:
        """Read all that waits, without blocking.

        :return: whether any of it can matter to a decision
        :raises OSError: the source is broken and must be closed; the reconcile goes on without it
        """

    def close(self) -> None:
        """Close the descriptor. Closing twice is harmless."""


RemovalReason: TypeAlias = Literal["lost", "left", "forbidden"]
"""Why a subflow is ended."""


class PathManager(Protocol):
    """Multipath TCP, where an operating system has it: connections whose byte stream goes over several subflows."""

    def protocol(self, family: int) -> int | None:
        """The protocol number of multipath stream sockets of an address family, ``None`` where there are none. Never raises."""

    def endpoints(self) -> Endpoints:
        """By which addresses the system adds subflows by itself, to connections that are made now.

        :raises OSError: the system does not say
        """

    def subflows(self, sock: socket.socket) -> Sequence[Subflow] | None:
        """The established subflows of a connection, ``None`` if it is not multipath, or is no more. Needs no privilege."""

    def bound(self, sock: socket.socket, subflow: Subflow) -> int | None:
        """The index of the interface to which a subflow is bound for its whole life. The index may be stale.

        :return: 0 if it is bound to none, or that is unknown; ``None`` if the subflow has ended. Never raises.
        """

    def silence(self, sock: socket.socket) -> float:
        """Seconds for which nothing has come from the peer although something that was sent waits to be acknowledged."""

    def register(self, sock: socket.socket) -> None:
        """The connection is to be followed, where it is now. See :meth:`release`."""

    def add(self, sock: socket.socket, interface: Interface) -> IPAddress:
        """Order a subflow by an interface, unless there is one. It is established a round trip later, if at all.

        :return: the local address that it has
        :raises PermissionError: it takes a privilege that this process has not
        :raises OSError: the system refused otherwise
        """

    def arrived(self, sock: socket.socket, address: IPAddress) -> None:
        """A subflow with this local address has joined, and that is where the connection is from now on: let it receive as much
        at a time as the whole connection does.

        :raises OSError: the connection has ended
        """

    def remove(self, sock: socket.socket, address: IPAddress, why: RemovalReason) -> bool:
        """Order the end of the subflows that have a local address, established or not.

        :param why: ``"lost"``: nothing can go over them any more; ``"forbidden"``: nothing may; ``"left"``: the connection is
            elsewhere now, and those that the system has made by itself are left to it
        :return: whether they are to end, and are not left alone
        :raises OSError: as :meth:`add` does
        """

    def retain(self, interfaces: Collection[int]) -> None:
        """Undo what was done to the system for interfaces that are no more. Never raises.

        :param interfaces: the indices of those that there are
        """

    def release(self, sock: socket.socket) -> bool:
        """The connection is over: undo what was done to the system for its sake alone. Never raises.

        :return: whether something is left that :meth:`sweep` should be asked about later
        """

    def sweep(self) -> bool:
        """As :meth:`release`, for what could not be undone yet."""


class Administration(Protocol):
    """The policy rules and routing tables as an administrator sees them, where an operating system has them.

    Every method raises :class:`KernelError` for an answer that cannot be understood, and :class:`OSError` for a refusal.
    """

    def rules(self) -> Sequence[PolicyRule]:
        """The policy rules of both families, in the order in which they are tried."""

    def routes(self) -> Sequence[Route]:
        """The routing tables of both families, without the local one."""

    def firewall(self, version: int) -> Sequence[str]:
        """What could keep packets of this host from leaving: one phrase for each place in its firewall that drops, rejects or
        redirects some of them, whichever those are.

        :param version: of the addresses, 4 or 6
        """

    def filters_strictly(self, interface: Interface) -> bool:
        """Whether IPv4 answers to a bound socket are dropped where the default route is another interface's."""

    def gateway(self, interface: Interface, family: socket.AddressFamily) -> Gateway | None:
        """The gateway by which the interface reaches the world, ``None`` if nothing names one. Nothing is sent."""

    mark: int
    """The firewall mark of every socket that the kernel binds from now on, and with which it asks for routes; 0 for none.
    Whoever shares the kernel shares the mark."""

    mender: Mender | None
    """Is shown each reading, and may repair what it finds."""

    def repairs(self, *, kept: bool = False) -> Repairs:
        """Open what makes repairs in this network namespace. The caller closes it.

        :param kept: the repairs stay until they are removed; otherwise they end with the process, or are found by the next one
        """


class Repairs(Protocol):
    """Makes, finds and removes repairs: a default route for sockets that are bound to an interface, in a table of its own.

    Orders take CAP_NET_ADMIN. Methods raise as those of :class:`Administration`.
    """

    def standing(self) -> Sequence[Repair]:
        """The complete repairs that there are, whoever made them."""

    def make(self, repair: Repair) -> None:
        """Make a repair, route first, so that no rule ever leads nowhere."""

    def remove(self, repair: Repair) -> None:
        """Remove a repair, rules first."""

    def remove_all(self, *, orphans: bool = False) -> int:
        """Remove what there is of repairs, complete or not.

        :param orphans: only those that ended with no process: nothing if another process lives that makes some
        :return: how many rules and routes that were
        """

    def close(self) -> None:
        """Close the descriptors. Closing twice is harmless."""


class Mender(Protocol):
    """Looks at readings and repairs."""

    said: str
    """What stood in the way of the last repair; empty if nothing did."""

    def mend(self, network: Network) -> bool:
        """Look at a reading. Never raises :class:`OSError`.

        :return: whether anything was changed, so that the reading is old
        """


class Kernel(Protocol):
    """What bindsock needs of an operating system."""

    @property
    def administration(self) -> Administration | None:
        """``None`` where there are no policy rules."""

    @property
    def multipath(self) -> PathManager | None:
        """``None`` where there is no multipath TCP that a program may use."""

    binding_filters_ingress: bool
    """Whether a socket that is bound to an interface receives by that one only. Where it does not, a datagram socket without a
    peer can be moved while answers are on their way."""

    def network(self, *, partial: bool = False) -> Network:
        """One reading of the machine's network.

        :param partial: a socket waits to be moved: interfaces, addresses and default routes count, specific routes may be those
            of the last reading; a complete one will follow
        :raises KernelError: the system's answer cannot be understood
        :raises OSError: a call failed
        """

    def lookups(self, network: Network) -> Lookups:
        """What the system answers about a destination, for decisions about a reading.

        It is equal to the one before for as long as no answer that that has given has become old; whoever has decided by another
        one decides anew. Asking it may raise :class:`OSError`.

        :param network: the last reading
        """

    def routes(self, family: socket.AddressFamily | None = None, table: int | None = None) -> Sequence[Route]:
        """The routing tables, for a person to read. No decision needs them, and they may be large.

        :param family: one address family, both if ``None``
        :param table: one routing table where there are several, all if ``None``
        :raises KernelError: the system's answer cannot be understood
        :raises OSError: a call failed
        """

    def events(self) -> Sequence[EventSource]:
        """Open the event sources. The caller closes them.

        :raises OSError: not one could be opened
        """

    def suspended(self) -> float:
        """How many seconds the machine has slept since it was started. Grows across a sleep and only then."""

    def bind(self, sock: socket.socket, interface: Interface) -> None:
        """Bind a fresh socket so that what it sends leaves by the interface, before its bind() and connect().

        :raises BindFailed: with the call and the errno; the caller must close the socket
        """

    def rebind(
        self, sock: socket.socket, interface: Interface, *, peer: tuple[Any, ...] | None = None, port: int | None = None
    ) -> None:
        """Move a datagram socket to the interface: same descriptor, same port, connected to the same peer as before.

        Moving to the interface that it is bound to already is harmless and chooses the source address anew.

        :param peer: the address that the socket is to be connected to, for when a failed call has left it disconnected; what
            the socket itself says comes first
        :param port: the local port, likewise
        :raises BindFailed: a step failed; the socket stays bound to a device (its sends are refused), never unbound
        """

    def unbind(self, sock: socket.socket) -> None:
        """Let the routing table alone decide again. A datagram socket stays connected, with the source address of its new route.

        :raises BindFailed: the system forbids it
        """

    def bound(self, sock: socket.socket) -> int | None:
        """The index of the interface that the socket is bound to, or ``None``. The index may be stale."""

    def chosen_options(self, sock: socket.socket) -> frozenset[str]:
        """The options by which the program has chosen the socket's interface or routes, by name: of ``SO_MARK``,
        ``IP_UNICAST_IF``, ``IPV6_UNICAST_IF``, ``IP_MULTICAST_IF`` and ``IPV6_MULTICAST_IF`` those that are set. Never raises.
        """

    def has_route(self, interface: Interface, destination: IPAddress) -> bool:
        """Whether a real route to the destination leaves by the interface for a socket bound to it."""

    def cure(self, interface: Interface, destination: IPAddress) -> str:
        """What would give :meth:`has_route` a route: one sentence for the person who runs the machine."""

    def activity(self, sock: socket.socket) -> object:
        """A value that differs whenever data moved over the stream socket since it was last asked; ``None`` if unknown."""

    def dropped(self, interface: Interface) -> int | None:
        """How many packets the interface's device has taken and dropped instead of sending them, whoever gave them to it.

        :return: a count that only grows; ``None`` if it is unknown. Never raises.
        """

    def first_hop_answers(self, interface: Interface, gateway: IPAddress) -> bool | None:
        """Whether the gateway's link-layer address is known, so that what is sent by it leaves the machine.

        :return: ``None`` if it is unknown. Never raises.
        """

    def ask_first_hop(self, interface: Interface, gateway: IPAddress) -> None:
        """Make the system look for the gateway's link-layer address, if it does not know it. Never raises."""

    def rejection(self, sock: socket.socket) -> Rejection | None:
        """The ICMP message that ended the connect of a socket, before it is closed. It is told once.

        :return: ``None`` if there was none or it is unknown. Never raises.
        """

    def departure(self, sock: socket.socket, address: Any) -> Departure:
        """What becomes of an attempt to connect to another host before it leaves this one. It is found out by another attempt,
        which gets no further than the first hop.

        :param sock: a fresh stream socket that is bound as that of the connection; only good to be closed afterwards
        :param address: of the peer. Never raises.
        """

    def unsent(self, sock: socket.socket) -> int:
        """How many datagrams, at the most, the socket has handed over that have not left their device yet.

        :return: 0 also if it is unknown. Never raises.
        """

    def abort(self, sock: socket.socket) -> None:
        """End a connected stream socket at once, whatever is under way: whoever waits on it is woken, with an error if the
        system can do that. The descriptor stays open.

        :raises OSError: the call failed; it may not have been connected any more
        """

    def needs_farewell(self, sock: socket.socket) -> bool:
        """Whether the last acknowledgement of a connection that is closed now could leave by another device than it is bound to.

        :return: false also for a socket that is not connected, or closed. Never raises.
        """

    def set_user_timeout(self, sock: socket.socket, seconds: float) -> None:
        """Let a stream socket fail when its peer has not answered for so long, whether anything was sent or not.

        It is for paths that die without an event, beyond the first hop. At rest the peer is asked now and then.

        :raises OSError: the system refused
        """

    def close(self) -> None:
        """Let go of the descriptors that are kept between questions. The next question opens them again."""
