"""The steps of the demonstration: what happens to the uplinks, and when."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from bindsock import kernel as kernels
from bindsock.cli.demo.measuring import KernelEvents, Observation, Switch, observe
from bindsock.cli.demo.programs import BindsockSockets, HandBoundSockets, PlainSockets, Program, running
from bindsock.factory import TransportFactory
from bindsock.model.preferences import Preferences

if TYPE_CHECKING:
    from bindsock.testing.lab import Lab, Tap

UPLINKS = ("wifi0", "eth0", "wwan0")
PREFERENCES = Preferences(expensive=["wwan*"])
"""Linux does not tell which interfaces cost money."""
DURATION = 18.0
BINDSOCK, PLAIN, BY_HAND = "bindsock", "plain asyncio", "bound by hand"

_OUTCOME_DELAY = 1.3
"""Seconds after a switch until its outcome is shown. A stream ends one second after its carrier is lost."""
_FRAME = 0.25
"""Seconds between redraws."""
_READ_INTERVAL = 0.04
"""Seconds between reads of captured packets."""
_QUIET = 0.3
"""Seconds before a switch in which nothing is drawn, since drawing would delay what is measured."""
_STILL = 0.05
"""Seconds around a switch in which the demonstration does nothing at all."""
_MOVING_SECONDS = 0.3
"""Seconds after a switch in which packets may still leave by the old interface."""
_DRAIN = 0.4
"""Seconds for which the outcome of a switch does not count a message as lost."""
_LAST_DRAIN = 20.0
"""Seconds to wait for the last answers at most."""
_SWITCH_INTERVAL = 0.0002


@dataclass(frozen=True, slots=True)
class Step:
    """A change of an uplink."""

    at: float
    """When it happens, in seconds from the start."""
    interface: str
    usable: bool
    """Whether the interface is usable after the change."""
    operation: Callable[[Lab], float]
    """Makes the change; returns the time just before, in monotonic seconds."""
    label: str
    """A short description."""
    text: str
    """A long description."""
    effective: str
    """The effective interface after the change."""
    moves: bool = True
    """Whether the effective interface is another one than before."""


STEPS = (
    Step(3.0, "wifi0", False, lambda lab: lab.down("wifi0"), "wifi0 off", "wifi0 is switched off", "eth0"),
    Step(6.5, "wifi0", True, lambda lab: lab.up("wifi0"), "wifi0 back", "wifi0 is back, and better than eth0", "wifi0"),
    Step(
        9.0,
        "eth0",
        False,
        lambda lab: lab.carrier("eth0", on=False),
        "eth0 unplugged",
        "eth0 is unplugged: nothing needs to move",
        "wifi0",
        moves=False,
    ),
    Step(
        11.0,
        "wifi0",
        False,
        lambda lab: lab.carrier("wifi0", on=False),
        "wifi0 lost",
        "wifi0 is out of range: only wwan0 is left, which costs money",
        "wwan0",
    ),
    Step(
        14.5,
        "eth0",
        True,
        lambda lab: lab.carrier("eth0", on=True),
        "eth0 back",
        "eth0 is plugged in again, beside wwan0, which still works",
        "eth0",
    ),
)
RESTART = (12.5, "wwan0")
"""When the hand-bound program is restarted, and the interface that it is bound to then. It would never move by itself."""


class Audience(Protocol):
    """Receives the progress of the demonstration."""

    def tell(self, text: str, style: str = "") -> None:
        """Called when something happened."""

    def look(self, stage: Stage) -> None:
        """Called when there is time to draw the stage."""

    def end(self, stage: Stage, until: float) -> None:
        """Called at the end. After ``until``, in monotonic seconds, only answers were awaited."""


@dataclass
class Stage:
    """The running programs, and the changes made so far."""

    start: float
    programs: Sequence[Program]
    factory: TransportFactory
    tap: Tap
    switches: list[Switch] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    effective: str = UPLINKS[0]

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def observation(self, *, since: float, until: float, drain: float = 0.0) -> Observation:
        """What was measured between two moments, in monotonic seconds.

        :param drain: messages of the last seconds, as many as this, do not count as lost yet
        """
        packets = [p for p in self.tap.packets if p.time >= since]
        flows, unknown = observe(self.programs, packets, horizon=until - drain)
        return Observation(
            since,
            until,
            flows,
            tuple(self.switches),
            tuple(self.restarts),
            unknown,
            self.tap.dropped,
            self.factory.statistics(),
        )


async def cling(lab: Lab, audience: Audience) -> Observation:
    """Run the same program with three kinds of sockets, while uplinks come and go and the VPN stays up."""
    server = (lab.server.ipv4, lab.server.udp_port, lab.server.tcp_port)
    kernel = kernels.current()
    lab.vpn_up("metric")
    interval = sys.getswitchinterval()
    try:
        # The laboratory works in a thread, which must not keep the measured event loop waiting for the interpreter.
        sys.setswitchinterval(_SWITCH_INTERVAL)
        with KernelEvents(kernel) as events, lab.tap(address=lab.server.ipv4) as tap:
            async with TransportFactory(PREFERENCES) as factory:
                programs = (
                    Program(BINDSOCK, "bindsock", BindsockSockets(factory), server),
                    Program(PLAIN, "asyncio", PlainSockets(), server),
                    Program(BY_HAND, "byhand", HandBoundSockets(UPLINKS[0]), server),
                )
                stage = Stage(time.monotonic(), programs, factory, tap)
                async with running(*programs):
                    await _play(lab, stage, events, audience)
                    end = time.monotonic()
                    await asyncio.gather(*(p.stop(drain=_LAST_DRAIN) for p in programs))
                audience.end(stage, end)
                return stage.observation(since=stage.start, until=end)
    finally:
        sys.setswitchinterval(interval)
        lab.vpn_down()


async def _play(lab: Lab, stage: Stage, events: KernelEvents, audience: Audience) -> None:
    restart_at, restart_interface = RESTART
    audience.tell(f"{0.0:5.1f} s  the programs start; effective interface: {stage.effective}")
    for step in STEPS:
        if restart_at < step.at and not stage.restarts:
            await _watch_until(stage, audience, restart_at)
            await stage.programs[-1].restart(HandBoundSockets(restart_interface))
            stage.restarts.append(time.monotonic())
            audience.tell(f"{stage.elapsed:5.1f} s  {BY_HAND}: its operator starts it again, bound to {restart_interface}")
        await _watch_until(stage, audience, step.at)
        audience.tell(f"{step.at:5.1f} s  {step.text}", "bold")
        issued, done = await asyncio.to_thread(_carry_out, step, lab)
        await asyncio.sleep(_STILL)
        event = min(events.first_since(issued) or done, done)
        stage.effective = step.effective
        stage.switches.append(Switch(step.label, step.interface, step.usable, issued, event, step.effective, step.moves))
        if step.moves:
            await _watch_until(stage, audience, step.at + _OUTCOME_DELAY)
            for line in outcome(stage.observation(since=issued, until=time.monotonic(), drain=_DRAIN)):
                audience.tell(f"         {line}", "dim")
    await _watch_until(stage, audience, DURATION)


def _carry_out(step: Step, lab: Lab) -> tuple[float, float]:
    """Change the network. Called in a thread, so that the event loop is free to react.

    :return: the time just before the change was ordered, and the time when it was done. The kernel announces a change before it
        confirms it, so the second time is an upper bound for that of the event.
    """
    return step.operation(lab), time.monotonic()


async def _watch_until(stage: Stage, audience: Audience, at: float) -> None:
    """Draw until shortly before a moment, then wait for it and do nothing.

    :param at: the moment, in seconds from the start
    """
    due = min(stage.elapsed + _QUIET, at)
    while (left := at - stage.elapsed) > _STILL:
        _ = stage.tap.packets  # reads the captured packets in small portions, since reading all at once would block the loop
        if due <= stage.elapsed < at - _QUIET:
            audience.look(stage)
            due = stage.elapsed + _FRAME
        await asyncio.sleep(min(_READ_INTERVAL, left - _STILL))
    await asyncio.sleep(at - stage.elapsed)


def outcome(observation: Observation) -> list[str]:
    """The effect of the latest switch on each program, one line for each."""
    switch, until = observation.moves()[-1]
    lines = []
    for program in observation.programs():
        parts = []
        for protocol in ("UDP", "TCP"):
            delay = observation.flow(program, protocol).delay(switch, until)
            if delay is not None:
                parts.append(f"{protocol} after {milliseconds(delay)}")
        if not parts:
            since = switch.event + _MOVING_SECONDS
            used = {i for f in observation.flows if f.program == program for t, i in f.packets if t > since}
            lines.append(f"{program}: {'all of it by ' + ', '.join(sorted(used)) if used else 'silent'}")
        else:
            lines.append(f"{program}: by {switch.effective}, {', '.join(parts)}")
    return lines


def milliseconds(seconds: float) -> str:
    """Format a duration: ``<0.1 ms``, ``0.8 ms``, ``23 ms``, ``1.03 s``."""
    if seconds < 5e-5:
        return "<0.1 ms"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"
