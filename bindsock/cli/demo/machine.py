"""The demonstration without a laboratory: the machine's own interfaces, the decision, and a connection to a host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from bindsock.cli import documents
from bindsock.cli import status as status_command
from bindsock.cli.demo.facts import Fact
from bindsock.cli.demo.scenario import milliseconds
from bindsock.cli.output import Printer, columns
from bindsock.factory import TransportFactory
from bindsock.model.decision import Decision
from bindsock.model.network import FAMILIES, Network, family_name
from bindsock.routing.effective import Decider

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection, or why it failed."""

    by: str
    error: str | None = None
    local: str | None = None
    remote: str | None = None
    bound: str | None = None
    """The interface that its socket is bound to."""
    owner: str | None = None
    """The interface that has its local address."""
    seconds: float = 0.0


async def show(printer: Printer, host: str | None, port: int) -> tuple[list[Fact], dict[str, Any]]:
    """Show the machine's interfaces and, if a host is given, a connection to it.

    :return: the facts, and everything else as a JSON document
    :raises OSError: the network could not be read
    """
    factory = TransportFactory()
    network = factory.kernel.network()
    decider = Decider(network, lookups=factory.kernel.lookups(network))
    defaults = [decider.decide(family) for family in FAMILIES]
    status_command.show(printer, network, defaults, factory.preferences)
    chosen = next((d.interface.name for d in defaults if d.interface is not None), None)
    facts = [Fact("there is an effective interface", chosen is not None, chosen or "none", {"interface": chosen})]
    found: dict[str, Any] = {"effective": {family_name(d.family).lower(): documents.decision(d) for d in defaults}}
    if host is None:
        printer.line()
        printer.line("to see a connection, name a host: bindsock demo example.com")
        return facts, found
    async with factory:
        ours = await _connect("bindsock", lambda: factory.open_connection(host, port), factory, network)
    plain = await _connect("asyncio", lambda: asyncio.open_connection(host, port), factory, network)
    decision = decider.decide(ip_address(ours.remote)) if ours.remote is not None else None
    printer.line()
    if decision is not None:
        printer.lines(str(decision).splitlines())
        printer.line()
    printer.lines(_table(host, port, (ours, plain)))
    facts.append(_fact(host, ours, decision))
    found["connections"] = [
        {
            "by": c.by,
            "error": c.error,
            "local": c.local,
            "remote": c.remote,
            "bound": c.bound,
            "owner": c.owner,
            "seconds": c.seconds,
        }
        for c in (ours, plain)
    ]
    found["decision"] = documents.decision(decision) if decision is not None else None
    return facts, found


async def _connect(
    by: str, dial: Callable[[], Awaitable[tuple[StreamReader, StreamWriter]]], factory: TransportFactory, network: Network
) -> Connection:
    begun = time.monotonic()
    try:
        async with asyncio.timeout(_TIMEOUT):
            _, writer = await dial()
    except TimeoutError:
        return Connection(by, f"no answer in {_TIMEOUT:.0f} s")
    except OSError as error:
        return Connection(by, str(error))
    seconds = time.monotonic() - begun
    try:
        local, remote = (str(writer.get_extra_info(name)[0]) for name in ("sockname", "peername"))
        bound = factory.interface_of(writer)
        owner = network.owner_of(ip_address(local))
        return Connection(by, None, local, remote, bound, owner.name if owner is not None else None, seconds)
    finally:
        writer.transport.abort()


def _table(host: str, port: int, connections: tuple[Connection, ...]) -> list[str]:
    rows = [(f"{host} port {port}", "bound to", "local address", "of", "to", "after")]
    for c in connections:
        if c.error is not None:
            rows.append((c.by, "-", c.error, "", "", ""))
        else:
            rows.append((c.by, c.bound or "nothing", c.local or "", c.owner or "", c.remote or "", milliseconds(c.seconds)))
    return columns(rows)


def _fact(host: str, connection: Connection, decision: Decision | None) -> Fact:
    name = f"a connection to {host} leaves by the chosen interface"
    if decision is None:
        return Fact(name, False, connection.error or "there is no connection", {})
    wanted = decision.interface.name if decision.interface is not None else None
    held = connection.bound == wanted and (wanted is None or connection.owner == wanted)
    text = (
        f"chosen: {wanted or 'not to bind'}; bound to {connection.bound}, local address {connection.local} of {connection.owner}"
    )
    return Fact(name, held, text, {"decided": wanted, "bound": connection.bound, "owner": connection.owner})
