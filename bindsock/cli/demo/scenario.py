"""What happens in the demonstration, and when."""

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
"""Linux never says of an interface that it costs money."""
DURATION = 18.0
BINDSOCK, PLAIN, BY_HAND = "bindsock", "plain asyncio", "bound by hand"

_SETTLE = 1.3
"""Seconds after which the outcome of a switch is told. A lost carrier is given one second to come back before a stream ends."""
_FRAME = 0.25
_SIP = 0.04
_QUIET = 0.3
"""Seconds around a switch in which nothing is drawn: drawing would delay the very thing that is measured."""
_STILL = 0.05
"""Seconds around a switch in which nothing is done at all."""
_SETTLED = 0.3
_DRAIN = 0.4
_SWITCH_INTERVAL = 0.0002


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens to an uplink."""

    at: float
    """Seconds from the start."""
    interface: str
    usable: bool
    """Whether it comes or goes."""
    operation: Callable[[Lab], float]
    label: str
    """In a word or two."""
    text: str
    effective: str
    """The interface that is effective from then on."""
    moves: bool = True
    """Whether that is another one than before."""


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
"""When the hand-bound program is started again, and to which interface it is bound then: it would never move by itself."""


class Audience(Protocol):
    """Who looks on while it runs."""

    def tell(self, text: str, style: str = "") -> None:
        """Something happened."""

    def look(self, stage: Stage) -> None:
        """A good moment to draw the stage."""

    def end(self, stage: Stage, until: float) -> None:
        """It is over; only answers were awaited after ``until``."""


@dataclass
class Stage:
    """What runs, and what was done to it so far."""

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
        """What was seen between two moments."""
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
    """Three times the same program, while uplinks come and go beneath a VPN that is up all the time."""
    server = (lab.server.ipv4, lab.server.udp_port, lab.server.tcp_port)
    kernel = kernels.current()
    lab.vpn_up("metric")
    interval = sys.getswitchinterval()
    try:
        # The laboratory's own work, in a thread, must not keep the loop from the interpreter while the loop is being measured.
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
                    await asyncio.gather(*(p.stop(drain=_DRAIN) for p in programs))
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
            await _watch_until(stage, audience, step.at + _SETTLE)
            for line in outcome(stage.observation(since=issued, until=time.monotonic(), drain=_DRAIN)):
                audience.tell(f"         {line}", "dim")
    await _watch_until(stage, audience, DURATION)


def _carry_out(step: Step, lab: Lab) -> tuple[float, float]:
    """Change the network, in a thread: the loop must be free to see it.

    :return: just before it was ordered, and when it was done. The kernel announces first and confirms then, so that is the
        latest at which it can have been announced, should whoever notes it have been kept waiting.
    """
    return step.operation(lab), time.monotonic()


async def _watch_until(stage: Stage, audience: Audience, at: float) -> None:
    """Look on until a moment, and be still just before it."""
    due = min(stage.elapsed + _QUIET, at)
    while (left := at - stage.elapsed) > _STILL:
        _ = stage.tap.packets  # takes them out of the kernel's queue, a few at a time: all at once would hold up the loop
        if due <= stage.elapsed < at - _QUIET:
            audience.look(stage)
            due = stage.elapsed + _FRAME
        await asyncio.sleep(min(_SIP, left - _STILL))
    await asyncio.sleep(at - stage.elapsed)


def outcome(observation: Observation) -> list[str]:
    """What the latest switch meant for each program, a line each."""
    switch, until = observation.moves()[-1]
    lines = []
    for program in observation.programs():
        parts = []
        for protocol in ("UDP", "TCP"):
            delay = observation.flow(program, protocol).delay(switch, until)
            if delay is not None:
                parts.append(f"{protocol} after {milliseconds(delay)}")
        if not parts:
            used = {i for f in observation.flows if f.program == program for t, i in f.packets if t > switch.event + _SETTLED}
            lines.append(f"{program}: {'all of it by ' + ', '.join(sorted(used)) if used else 'silent'}")
        else:
            lines.append(f"{program}: by {switch.effective}, {', '.join(parts)}")
    return lines


def milliseconds(seconds: float) -> str:
    """``<0.1 ms``, ``0.8 ms``, ``23 ms``, ``1.03 s``."""
    if seconds < 5e-5:
        return "<0.1 ms"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"
