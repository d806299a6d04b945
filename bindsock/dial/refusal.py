"""Why a dial has failed: the error that says so, out of what the system tells."""

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
"""How many places of a firewall a message names."""


def firewall_error(
    error: OSError,
    sockaddr: SockAddr,
    decision: Decision,
    rejection: Rejection | None,
    network: Callable[[], Network],
    *,
    own_reset: bool = False,
) -> FirewallBlocked | None:
    """The error of a connect that a firewall has refused, ``None`` if it was something else.

    :param rejection: the ICMP message that ended the connect, if there was one
    :param network: makes a reading, which says whether the message is this host's own
    :param own_reset: whether it was ended by a reset that is this host's own
    """
    own = rejection is not None and network().owner_of(rejection.source) is not None
    if own_reset:
        who = "the firewall of this host rejects it with a reset"
    elif own:
        who = "the firewall of this host rejects it"
    elif rejection is not None and rejection.prohibited:
        who = f"a firewall forbids it, says {rejection.source}"
    elif error.errno == errno.EPERM:
        who = "the firewall or a policy of this host forbids it"
    elif error.errno == errno.EACCES:
        # Also a route of the type "prohibit" (linux net/ipv4/fib_semantics.c, fib_props).
        who = "a firewall or a prohibiting route forbids it"
    else:
        return None
    return FirewallBlocked(
        f"cannot connect to {sockaddr[0]} port {sockaddr[1]}: {who}",
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
    """The error of a connect to which nothing has come, with what can be seen of the reason.

    :param seconds: for which it was waited for
    :param departure: what becomes of such attempts within this host
    """
    parts = [f"no answer from {sockaddr[0]} port {sockaddr[1]} within {seconds:g} s"]
    if departure in (Departure.DROPPED, Departure.RESET):
        parts.append("it does not leave this host, whose firewall, a policy or a full queue drops it")
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
    except OSError:  # most processes may not read them
        return []
    more = [f"{len(rules) - _MOST_RULES} more"] if len(rules) > _MOST_RULES else []
    return [f"in the firewall of this host {', '.join([*rules[:_MOST_RULES], *more])}"] if rules else []


def datagram_error(error: OSError, interface: str | None) -> OSError:
    """The error of a datagram that was refused: :class:`FirewallBlocked` where a firewall did it, else the same one."""
    if error.errno != errno.EPERM or isinstance(error, BindsockError):
        return error
    return FirewallBlocked("the firewall of this host forbids the datagram", errno=error.errno, interface=interface, call="send")
