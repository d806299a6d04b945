"""The options, exit statuses and helpers that the commands share."""

from __future__ import annotations

import argparse
import difflib
import enum
import socket
import sys
from typing import TYPE_CHECKING, get_args

from bindsock import kernel as kernels
from bindsock.cli import values
from bindsock.cli.completion import INTERFACE, completed_by
from bindsock.dial.resolving import Resolve
from bindsock.factory import TransportFactory
from bindsock.model.network import FAMILIES
from bindsock.model.preferences import Cost, Preferences, Tunnels
from bindsock.resolvers import InterfaceResolver

if TYPE_CHECKING:
    from bindsock.model.network import Network


class Exit(enum.IntEnum):
    """The exit statuses."""

    OK = 0
    NO = 1
    """There is no effective interface, a name has no address, a fact did not hold."""
    USAGE = 2
    SYSTEM = 3
    """The system is not supported, or a system call failed."""
    INTERRUPTED = 130
    BROKEN_PIPE = 141


def fail(message: str, status: int) -> int:
    """Print one line on standard error, and return the exit status."""
    print(f"bindsock: {message}", file=sys.stderr)
    return status


def add_json(parser: argparse.ArgumentParser, what: str = "print one JSON document instead of text") -> None:
    parser.add_argument("--json", action="store_true", help=what)


def add_decision_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for how interfaces are chosen, and for which address families."""
    add_preferences(parser)
    family = parser.add_mutually_exclusive_group()
    family.add_argument("--family", choices=("4", "6"), help="only IPv4, or only IPv6")
    family.add_argument("-4", dest="family", action="store_const", const="4", help="the same as --family 4")
    family.add_argument("-6", dest="family", action="store_const", const="6", help="the same as --family 6")


def add_preferences(parser: argparse.ArgumentParser) -> None:
    """Add the options for how interfaces are chosen."""
    choice = parser.add_argument_group("how to choose", "patterns are those of the shell: 'en*', 'docker?'; quote them")
    interface = choice.add_argument(
        "--interface", metavar="NAME", type=values.interface_name, help="use only this interface, without detection"
    )
    completed_by(interface, INTERFACE)
    choice.add_argument(
        "--include", metavar="PATTERN", action="append", default=[], help="use only interfaces that match (repeatable)"
    )
    choice.add_argument(
        "--exclude", metavar="PATTERN", action="append", default=[], help="do not use interfaces that match (repeatable)"
    )
    choice.add_argument(
        "--expensive", metavar="PATTERN", action="append", default=[], help="interfaces that match cost money (repeatable)"
    )
    choice.add_argument(
        "--cost",
        choices=get_args(Cost),
        default="avoid",
        help="when to use expensive interfaces: if no other is usable (avoid, the default); the same, even if a tunnel claims to "
        "run over one (cheapest); like any other (ignore); not at all (never)",
    )
    choice.add_argument(
        "--tunnels",
        choices=get_args(Tunnels),
        default="bypass",
        help="bypass all VPN tunnels (the default), or use a tunnel for destinations that it has a specific route to (split)",
    )
    choice.add_argument(
        "--mark",
        metavar="NUMBER",
        type=values.mark,
        default=0,
        help="also set this firewall mark, for VPNs that let marked packets bypass them (Linux, with CAP_NET_ADMIN)",
    )


def preferences(arguments: argparse.Namespace) -> Preferences:
    """The preferences that the options give."""
    return Preferences(
        include=arguments.include,
        exclude=arguments.exclude,
        expensive=arguments.expensive,
        cost=arguments.cost,
        tunnels=arguments.tunnels,
        mark=arguments.mark,
    )


def add_repair(parser: argparse.ArgumentParser) -> None:
    """Add ``--repair-routes``, which :func:`factory` reads, to a command that makes connections."""
    parser.add_argument(
        "--repair-routes",
        action="store_true",
        help="if a VPN has left no route by any uplink, make one that only bound sockets use, and remove it at the end "
        "(Linux, with CAP_NET_ADMIN)",
    )


def factory(arguments: argparse.Namespace, *, resolver: Resolve | InterfaceResolver | None = None) -> TransportFactory:
    """A factory with the preferences that the options give.

    :param resolver: resolves names; the system's resolver by default
    :raises UnsupportedSystem: there is no kernel backend for this system
    """
    return TransportFactory(
        preferences(arguments),
        interface=arguments.interface,
        kernel=kernels.current(),
        resolver=resolver,
        repair_routes=getattr(arguments, "repair_routes", False),
    )


def no_such_interface(name: str, network: Network) -> str:
    """What to tell about a name that no interface has."""
    names = [interface.name for interface in network.interfaces.values()]
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"there is no interface {name}; " + (f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(names)}")


def families(arguments: argparse.Namespace) -> tuple[socket.AddressFamily, ...]:
    """The address families that the options give."""
    chosen = {"4": socket.AF_INET, "6": socket.AF_INET6}
    return FAMILIES if arguments.family is None else (chosen[arguments.family],)
