"""Networks written down the way ``ip`` prints them, for tests of what is decided from them; and what is in one."""

from __future__ import annotations

import ipaddress
import itertools
import socket
from typing import TYPE_CHECKING

from bindsock.model.network import Interface, InterfaceAddress, InterfaceKind, Network, Route, RouteKind
from bindsock.model.tables import tabulated

if TYPE_CHECKING:
    from collections.abc import Iterable


def network(interfaces: str, routes: str = "", *, unconfirmed: Iterable[str] = ()) -> Network:
    """A network.

    :param interfaces: one a line: ``en0 wifi 192.168.1.23/24 [down] [no-carrier] [dormant] [expensive] [last-resort]
        [delegate=en1] [also=NAME]``; the first has index 1. An address may have ``!tentative`` behind it, a delegate may be an
        index, ``also=`` is an alternative name.
    :param routes: one a line: ``default via 192.168.1.1 dev en0 [metric 600] [table 52] [scoped]``, ``blackhole 10.0.0.0/8``;
        ``default6`` is IPv6's. The system confirms the default routes
    :param unconfirmed: names of interfaces of which it does not
    """
    lines = [line.split() for line in interfaces.splitlines() if line.strip()]
    indices = {words[0]: number for number, words in enumerate(lines, 1)}
    made = {indices[words[0]]: _interface(words, indices) for words in lines}
    parsed = tuple(_route(line.split(), indices) for line in routes.splitlines() if line.strip())
    families = (socket.AF_INET, socket.AF_INET6)
    return tabulated(made, parsed, refused=[(indices[name], family) for name in unconfirmed for family in families])


def named(network: Network, name: str) -> Interface:
    """The interface of that name. There must be one."""
    found = network.named(name)
    assert found is not None
    return found


def _interface(words: list[str], indices: dict[str, int]) -> Interface:
    name, kind, *rest = words
    delegate = next((word.removeprefix("delegate=") for word in rest if word.startswith("delegate=")), None)
    return Interface(
        name,
        indices[name],
        InterfaceKind(kind),
        up="down" not in rest,
        running="down" not in rest and "no-carrier" not in rest,
        addresses=tuple(_address(word) for word in rest if "/" in word),
        delegate=None if delegate is None else indices[delegate] if delegate in indices else int(delegate),
        expensive="expensive" in rest,
        last_resort="last-resort" in rest,
        dormant="dormant" in rest,
        alternative_names=tuple(word.removeprefix("also=") for word in rest if word.startswith("also=")),
    )


def _address(word: str) -> InterfaceAddress:
    text, _, flag = word.partition("!")
    interface = ipaddress.ip_interface(text)
    address = ipaddress.ip_address(interface.ip.packed)
    return InterfaceAddress(address, interface.network.prefixlen, tentative=flag == "tentative")


def _route(words: list[str], indices: dict[str, int]) -> Route:
    kind = RouteKind(words.pop(0)) if words[0] in list(RouteKind) else RouteKind.UNICAST
    destination = {"default": "0.0.0.0/0", "default6": "::/0"}.get(words[0], words[0])
    options = dict(itertools.pairwise(words))
    return Route(
        ipaddress.ip_network(destination),
        indices.get(options["dev"], 999) if "dev" in options else None,
        ipaddress.ip_address(options["via"]) if "via" in options else None,
        int(options.get("metric", 0)),
        int(options.get("table", 254)),
        "scoped" in words,
        kind,
    )
