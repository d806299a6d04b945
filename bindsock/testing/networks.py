"""Builds networks from text that looks like the output of ``ip``."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

from bindsock.model.network import (
    DEFAULT_TABLE,
    FAMILIES,
    MAIN_TABLE,
    Interface,
    InterfaceAddress,
    InterfaceKind,
    Network,
    Route,
    RouteKind,
    is_address,
)
from bindsock.model.tables import tabulated
from bindsock.options import known_keywords_only

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_DEFAULTS = {"default": "0.0.0.0/0", "default6": "::/0"}
_KINDS = frozenset(kind.value for kind in RouteKind)
_TABLES = {"main": MAIN_TABLE, "default": DEFAULT_TABLE}
_PREFERENCES = {"high": 1, "medium": 0, "low": -1}


@known_keywords_only
def network(*parts: str | Interface | Route, unconfirmed: Iterable[str] = ()) -> Network:
    """Build a network from lines like those of ``ip address`` and ``ip route``.

    .. code-block:: python

        network("wifi0 wifi 192.0.2.5/24 2001:db8::5/64", "default via 192.0.2.1 dev wifi0", "default via fe80::1 dev wifi0")

    *An interface* is its name and its kind, a value of :class:`bindsock.model.network.InterfaceKind`, then any of: addresses such
    as ``192.0.2.5/24``, which may be followed by ``!tentative``, ``!deprecated`` or ``!temporary``; ``down``, ``no-carrier``,
    ``dormant``, ``expensive``, ``constrained``, ``last-resort``; ``mtu 1400``; ``altname NAME``; ``delegate NAME``, the interface
    that a tunnel claims to run over. The first interface has the index 1, the next one 2; ``7: wifi0 wifi`` has 7.

    *A route* is a prefix or ``default``, then any of: ``via ADDRESS``, ``dev NAME``, ``metric 600``, ``table 52``, ``pref high``,
    and ``scoped`` (Darwin). A type, such as ``blackhole``, may come first. A ``default`` has the family of its gateway, or IPv4
    without one; ``default6`` is an IPv6 default route. ``via inet6 fe80::1`` gives an IPv4 route an IPv6 gateway.

    An interface's index can be given instead of its name. By default the system confirms all default routes.

    :param parts: text of any number of such lines, or interfaces and routes that are used unchanged
    :param unconfirmed: the names of interfaces for which the system does not confirm a default route
    :raises ValueError: a line cannot be understood, or two interfaces have the same index
    """
    read: list[Interface | Route | list[str]] = []
    for part in parts:
        read += [line.split() for line in part.splitlines() if line.strip()] if isinstance(part, str) else [part]
    indices: dict[str, int] = {}
    for entry in read:
        if isinstance(entry, Interface):
            indices[entry.name] = entry.index
        elif isinstance(entry, list) and not _is_route(entry):
            index = int(entry.pop(0).removesuffix(":")) if entry[0].endswith(":") else len(indices) + 1
            indices[entry[0]] = index
    interfaces: dict[int, Interface] = {}
    routes: list[Route] = []
    for entry in read:
        if isinstance(entry, Route) or (isinstance(entry, list) and _is_route(entry)):
            routes.append(entry if isinstance(entry, Route) else _route(entry, indices))
            continue
        made = entry if isinstance(entry, Interface) else _interface(entry, indices)
        if made.index in interfaces:
            raise ValueError(f"{interfaces[made.index].name} and {made.name} have the same index {made.index}")
        interfaces[made.index] = made
    refused = [(_index(name, indices), family) for name in unconfirmed for family in FAMILIES]
    return tabulated(interfaces, routes, refused=refused)


def interface(line: str) -> Interface:
    """Build an interface from a line as for :func:`network`.

    :raises ValueError: the line cannot be understood
    """
    (made,) = network(line).interfaces.values()
    return made


def _is_route(words: list[str]) -> bool:
    first = words[0]
    return first in _DEFAULTS or first in _KINDS or "/" in first or is_address(first)


def _interface(words: list[str], indices: Mapping[str, int]) -> Interface:
    rest = iter(words)
    name, kind = next(rest), InterfaceKind(_next(rest, words))
    flags: set[str] = set()
    addresses: list[InterfaceAddress] = []
    alternative_names: list[str] = []
    mtu, delegate = 1500, None
    for word in rest:
        match word:
            case "down" | "no-carrier" | "dormant" | "expensive" | "constrained" | "last-resort":
                flags.add(word)
            case "mtu":
                mtu = int(_next(rest, words))
            case "delegate":
                delegate = _index(_next(rest, words), indices)
            case "altname":
                alternative_names.append(_next(rest, words))
            case _:
                addresses.append(_address(word))
    return Interface(
        name,
        indices[name],
        kind,
        up="down" not in flags,
        running=flags.isdisjoint({"down", "no-carrier"}),
        addresses=tuple(addresses),
        mtu=mtu,
        delegate=delegate,
        expensive="expensive" in flags,
        constrained="constrained" in flags,
        last_resort="last-resort" in flags,
        dormant="dormant" in flags,
        alternative_names=tuple(alternative_names),
    )


def _address(word: str) -> InterfaceAddress:
    text, *flags = word.split("!")
    parsed = ip_interface(text)
    known = {"tentative", "deprecated", "temporary"}
    if not known.issuperset(flags):
        raise ValueError(f"{word!r}: only {', '.join(sorted(known))} may follow an address")
    return InterfaceAddress(
        ip_address(parsed.ip.packed),
        parsed.network.prefixlen,
        tentative="tentative" in flags,
        deprecated="deprecated" in flags,
        temporary="temporary" in flags,
    )


def _route(words: list[str], indices: Mapping[str, int]) -> Route:
    rest = iter(words)
    first = next(rest)
    kind = RouteKind(first) if first in _KINDS else RouteKind.UNICAST
    destination = _next(rest, words) if first in _KINDS else first
    interface, gateway = None, None
    metric, table, preference = 0, MAIN_TABLE, 0
    scoped = foreign_gateway = False
    for word in rest:
        match word:
            case "via":
                following = _next(rest, words)
                foreign_gateway = following == "inet6"
                gateway = ip_address(_next(rest, words) if foreign_gateway else following)
            case "dev":
                interface = _index(_next(rest, words), indices)
            case "metric":
                metric = int(_next(rest, words))
            case "table":
                following = _next(rest, words)
                table = _TABLES[following] if following in _TABLES else int(following)
            case "pref":
                following = _next(rest, words)
                if following not in _PREFERENCES:
                    raise ValueError(f"{' '.join(words)!r}: {following!r} is not high, medium or low")
                preference = _PREFERENCES[following]
            case "scoped":
                scoped = True
            case _:
                raise ValueError(f"{' '.join(words)!r}: unknown word {word!r}")
    if destination == "default" and gateway is not None and gateway.version == 6 and not foreign_gateway:
        destination = "default6"
    prefix = ip_network(_DEFAULTS.get(destination, destination))
    return Route(prefix, interface, gateway, metric, table, scoped, kind, preference)


def _next(rest: Iterator[str], words: list[str]) -> str:
    word = next(rest, None)
    if word is None:
        raise ValueError(f"{' '.join(words)!r}: the line ends too early")
    return word


def _index(name: str, indices: Mapping[str, int]) -> int:
    if name in indices:
        return indices[name]
    if name.isdecimal():
        return int(name)
    raise ValueError(f"there is no interface {name!r}")
