"""Makes the errors for rejected and unanswered connections, with the cause as far as the system reports it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from bindsock.errors import BindsockError, FirewallBlocked, NoAnswer
from bindsock.model.rejection import Departure

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsock.dial.resolving import SockAddr
    from bindsock.kernel import Kernel
    from bindsock.model.decision import Decision, Path
    from bindsock.model.network import Network
    from bindsock.model.rejection import Rejection

_MOST_RULES = 3
"""How many firewall rules an error message names."""
_DOCTOR = "`bindsock doctor`, run as root, finds the rule"


def firewall_error(
    error: OSError,
    sockaddr: SockAddr,
    decision: Decision,
    rejection: Rejection | None,
    network: Callable[[], Network],
    *,
    own_reset: bool = False,
) -> FirewallBlocked | None:
    """The error for a connect that a firewall rejected; ``None`` if it failed for another reason.

    :param rejection: the ICMP message that ended the connect, if there was one
    :param network: reads the network, to find out whether the message came from this host
    :param own_reset: whether a reset of this host's own firewall ended the connect
    """
    own = rejection is not None and not rejection.host_unreachable and network().owner_of(rejection.source) is not None
    if own_reset:
        who = "the firewall of this host rejects it with a reset"
    elif own:
        who = "the firewall of this host rejects it"
    elif rejection is not None and rejection.prohibited:
        who = f"a firewall forbids it, according to an ICMP message of {rejection.source}"
    elif error.errno == errno.EPERM:
        who = "the firewall or a policy of this host forbids it"
    elif error.errno == errno.EACCES:
        # A route of the type "prohibit" gives the same error (linux net/ipv4/fib_semantics.c, fib_props).
        who = "a firewall or a prohibiting route forbids it"
    else:
        return None
    here = own_reset or own or error.errno == errno.EPERM
    return FirewallBlocked(
        "; ".join([f"cannot connect to {sockaddr[0]} port {sockaddr[1]}: {who}", *([_DOCTOR] if here else [])]),
        errno=error.errno,
        interface=decision.interface.name if decision.interface is not None else None,
        call="connect",
    )


def no_answer(
    kernel: Kernel,
    sockaddr: SockAddr,
    decision: Decision,
    path: Path | None,
    seconds: float,
    departure: Departure = Departure.UNKNOWN,
) -> NoAnswer:
    """The error for a connect that got no answer, with what is known about the cause.

    :param seconds: how long the dial has waited for an answer
    :param departure: whether this host itself drops or resets such connections
    """
    parts = [f"no answer from {sockaddr[0]} port {sockaddr[1]} within {seconds:g} s"]
    if departure in (Departure.DROPPED, Departure.RESET):
        parts.append("the packets do not leave this host: its firewall, a policy or a full queue drops them")
    interface = decision.interface
    if interface is not None:
        if path is not None and path.gateway is not None:
            answers = kernel.first_hop_answers(interface, path.gateway)
            if answers is not None:
                said = "answers" if answers else "has not answered"
                parts.append(f"the first hop, {path.gateway} on {interface.name}, {said}")
        parts += _obstacles(kernel, 6 if ":" in sockaddr[0] else 4)
    return NoAnswer("; ".join(parts), interface=interface.name if interface is not None else None, call="connect")


def _obstacles(kernel: Kernel, version: int) -> list[str]:
    administration = kernel.administration
    if administration is None:
        return []
    try:
        rules = list(administration.firewall(version))
    except OSError:  # most processes may not read the firewall rules
        return []
    more = [f"{len(rules) - _MOST_RULES} more"] if len(rules) > _MOST_RULES else []
    return [f"in the firewall of this host, {', '.join([*rules[:_MOST_RULES], *more])}"] if rules else []


def datagram_error(error: OSError, interface: str | None) -> OSError:
    """The error for a refused datagram: :class:`FirewallBlocked` if a firewall rejected it, otherwise the error itself."""
    if error.errno != errno.EPERM or isinstance(error, BindsockError):
        return error
    message = f"the firewall of this host forbids the datagram; {_DOCTOR}"
    return FirewallBlocked(message, errno=error.errno, interface=interface, call="send")


def reported_error(error: OSError, interface: str | None) -> OSError:
    """The error for an ICMP message about an earlier datagram: :class:`FirewallBlocked` if it says that a firewall rejected it.

    For IPv4 the system does not distinguish that from an unreachable host.
    """
    if error.errno != errno.EACCES:
        return error
    message = "a firewall or a prohibiting route forbids the datagrams, according to an ICMP message"
    return FirewallBlocked(message, errno=error.errno, interface=interface, call="recv")
