"""Watches the connections of a host with a VPN while its network changes, and checks what happened to each of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.servers import Servers
from tests.lab.commands import Commands
from tests.vpn.checks import uplink_of
from tests.vpn.traffic import Echoes, State, Where

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_PATIENCE = 20.0
_LATE = 5.0
"""Seconds to wait for an expected reply."""
_ROUNDS = 10
"""The number of answers that every connection must get after an event, until it counts as settled."""
_ROOT = Path(__file__).parents[2]
MOVING = ("datagrams", "on_reconnect")
"""The connections that move to a better interface as soon as there is one, and report their interface."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The datagrams of a family that were sent during an event."""

    what: str
    version: int
    sent: range
    replies_too: bool
    gap: bool
    """Whether some consecutive datagrams may be lost."""


class Journey:
    """The traffic, its servers, and the observations."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._exits = contextlib.ExitStack()
        self._parts: list[_Part] = []
        self._ends = {4: 0, 6: 0}
        """The number of datagrams of a family in all parts so far."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as exits:
            self.servers = exits.enter_context(Servers(self._lab))
            self._loop: asyncio.AbstractEventLoop = self.servers.call(asyncio.get_running_loop)
            self.commands = [Commands(), Commands()]
            for commands, family in zip(self.commands, (socket.AF_INET, socket.AF_INET6), strict=True):
                self._in_servers(commands.listen(self._lab, family=family))
                exits.callback(self._close, commands)
            self._process = self._start()
            exits.callback(self._kill)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._exits.close()

    def _close(self, commands: Commands) -> None:
        self._in_servers(commands.close())

    def _in_servers(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE)

    def _start(self) -> subprocess.Popen[str]:
        where = Where(
            Echoes.of(self._lab.server),
            [commands.address for commands in self.commands],
            (self.servers.host, ports.QUIC),
            self.servers.authority_pem.decode(),
        )
        return subprocess.Popen(
            [sys.executable, "-m", "tests.vpn.traffic", json.dumps(asdict(where))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            cwd=_ROOT,
        )

    def _kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, order: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def states(self) -> dict[str, State]:
        return {name: State(**fields) for name, fields in self._ask("state").items()}

    def fresh(self) -> Any:
        """Open new connections. Returns the kind, the interface, and the source address that the server saw, of each."""
        return self._ask("fresh")

    def settled(self, *interfaces: str) -> dict[str, State]:
        """Wait until every connection has received new answers, and those that move use the interface.

        :param interfaces: one for both families, or IPv4's and IPv6's
        """
        right = {4: interfaces[0], 6: interfaces[-1]}
        before = self.states()
        deadline = time.monotonic() + _PATIENCE
        while True:
            after = self.states()
            behind = [name for name, state in after.items() if state.done < before[name].done + _ROUNDS]
            elsewhere = [n for n, state in after.items() if n.startswith(MOVING) and state.interface != right[_version(n)]]
            if not behind and not elsewhere:
                return after
            assert time.monotonic() < deadline, f"no answers: {behind}; not by {interfaces}: {elsewhere}; {after}"
            time.sleep(0.05)

    def undisturbed(self, what: str, event: Callable[[], object], *interfaces: str) -> None:
        """Trigger an event that must not affect any connection."""
        before, after = self.through(what, event, *interfaces)
        for name, state in after.items():
            _is_undisturbed(what, name, before[name], state)

    def moves(
        self,
        what: str,
        event: Callable[[], object],
        *interfaces: str,
        families: tuple[int, ...] = (4, 6),
        gone: str | None = None,
        gap: tuple[int, ...] = (),
    ) -> None:
        """Trigger an event that makes another path the effective one.

        :param families: the IP versions of the path; connections of the other version are not affected
        :param gone: the uplink whose path fails, with the replies in flight; its plain streams end with an error, all others
            continue. ``None`` if all paths still work: then no reply is lost
        :param gap: as for :meth:`through`
        """
        before, after = self.through(what, event, *interfaces, may_lose_replies=families if gone is not None else (), gap=gap)
        for name, state in after.items():
            if _version(name) not in families:
                _is_undisturbed(what, name, before[name], state)
                continue
            ends = name.startswith("plain") and before[name].interface == gone
            assert state.ended == before[name].ended + ["InterfaceChanged"] * ends, f"{name} at {what}: {before[name]}, {state}"
            if name.startswith("on_reconnect"):
                assert state.reconnected > before[name].reconnected, f"{name} at {what}"

    def through(
        self,
        what: str,
        event: Callable[[], object],
        *interfaces: str,
        may_lose_replies: tuple[int, ...] = (),
        gap: tuple[int, ...] = (),
    ) -> tuple[dict[str, State], dict[str, State]]:
        """Trigger an event, and wait until all connections work again.

        :param gap: the IP versions of which the system may accept, and lose, datagrams while the event happens; bindsock must
            count them. A device drops what it accepts while it is set down (linux net/core/dev.c, __dev_close_many). If an
            IPv4 default route is removed, but not its interface, datagrams that are sent before bindsock reads the event wait
            for the server on the link (docs/datagrams.md)
        :return: the states before and after
        """
        before = self.states()
        event()
        after = self.settled(*interfaces)
        for version in (4, 6):
            sent = range(self._ends[version], after[f"datagrams {version}"].sent)
            self._ends[version] = sent.stop
            part = _Part(what, version, sent, version not in may_lose_replies, version in gap)
            self._parts.append(part)
            if part.replies_too:
                self._await_replies(part)
        return before, after

    def _await_replies(self, part: _Part) -> None:
        """Wait for the replies, since the next event may lose those in flight. Missing replies are reported at the end."""
        deadline = time.monotonic() + _LATE
        while set(part.sent).intersection(self.states()[f"datagrams {part.version}"].unanswered) and time.monotonic() < deadline:
            time.sleep(0.01)

    def finish(self) -> None:
        """End the traffic, and compare what was sent with what the servers received, and from which addresses."""
        output, _ = self._process.communicate(timeout=_PATIENCE)
        assert self._process.returncode == 0
        final = json.loads(output)
        states = {name: State(**fields) for name, fields in final["states"].items()}
        datagrams = [d for d in self._lab.datagrams() if d.payload.isdigit()]
        lost, in_gaps = [], 0
        for version, commands in zip((4, 6), self.commands, strict=True):
            arrived = {int(d.payload) for d in datagrams if (":" in d.source) == (version == 6)}
            state = states[f"datagrams {version}"]
            parts = [part for part in self._parts if part.version == version]
            missing = [number for number in range(state.sent) if number not in arrived]
            for part in parts:
                within = [number for number in missing if number in part.sent]
                if part.gap and within == list(range(within[0], within[-1] + 1) if within else ()):
                    missing = [number for number in missing if number not in part.sent]
                    in_gaps += len(within)
            lost += [f"{number} of IPv{version}, {_when(number, parts)}" for number in missing]
            unanswered = [number for part in parts if part.replies_too for number in state.unanswered if number in part.sent]
            lost += [f"the reply to {number} of IPv{version}, {_when(number, parts)}" for number in unanswered]
            assert commands.applied == list(range(states[f"on_reconnect {version}"].sent))
        assert lost == []
        assert in_gaps <= final["lost_on_device"]
        assert self.servers.quic_connections == 1
        sources = {d.source for d in datagrams}.union(self.servers.sources["quic"], *(c.sources for c in self.commands))
        assert {uplink_of(self._lab, source) for source in sources} <= set(self._lab.uplinks)


def _is_undisturbed(what: str, name: str, before: State, after: State) -> None:
    assert (after.ended, after.reconnected) == (before.ended, before.reconnected), f"{name} at {what}: {before}, {after}"


def _version(name: str) -> int:
    return 6 if name.endswith("6") else 4


def _when(number: int, parts: list[_Part]) -> str:
    return next((f"at {part.what}, as its number {number - part.sent.start}" for part in parts if number in part.sent), "between")
