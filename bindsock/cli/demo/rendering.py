"""The live output: lines of text and, on a terminal, a growing strip for each program."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from bindsock.cli.demo.measuring import TUNNEL
from bindsock.cli.demo.scenario import DURATION, Stage
from bindsock.cli.output import Printer

if TYPE_CHECKING:
    from typing import Self

    from rich.console import RenderableType
    from rich.live import Live
    from rich.text import Text

    from bindsock.cli.demo.measuring import Switch
    from bindsock.testing.lab import Packet

_LETTERS = {"wifi0": "W", "eth0": "E", "wwan0": "$", TUNNEL: "T"}
_STYLES = {"W": "blue", "E": "green", "$": "yellow", "T": "red", "·": "dim"}
_NONE = "·"
_LABEL = 15
LEGEND = (
    "W wifi0   E eth0   $ wwan0, which costs money   T tun0, the VPN   · nothing left",
    "^ the effective interface moved   * bound by hand: started again",
)


class Strips:
    """Strips that show by which interface each program's datagrams left, one character for each time slot.

    :param start: the time of the first slot, in monotonic seconds
    :param programs: the programs' names, by the tags of their datagrams
    :param width: characters in a line
    """

    def __init__(self, start: float, programs: Mapping[str, str], width: int) -> None:
        self._start = start
        self._cells = max(20, width - _LABEL)
        self._slots: dict[str, list[Counter[str]]] = {n: [Counter() for _ in range(self._cells)] for n in programs.values()}
        self._programs = {tag.encode(): name for tag, name in programs.items()}
        self._counted = 0

    def count(self, packets: Sequence[Packet]) -> None:
        """Count the packets that are new since the last call.

        :param packets: all packets so far
        """
        for packet in packets[self._counted :]:
            name = self._programs.get(packet.payload.partition(b" ")[0])
            slot = self._slot(packet.time)
            if name is not None and packet.protocol == "udp" and slot < self._cells:
                self._slots[name][slot][packet.interface] += 1
        self._counted = len(packets)

    def lines(self, until: float, switches: Sequence[Switch], restarts: Sequence[float]) -> list[str]:
        """The strips, with a scale above and marks and a legend below."""
        filled = min(self._cells, self._slot(until))
        result = [" " * _LABEL + self._scale()]
        for name, slots in self._slots.items():
            letters = (_LETTERS.get(s.most_common(1)[0][0], "?") if s else _NONE for s in slots[:filled])
            result.append(f"{name:<{_LABEL}}{''.join(letters)}")
        marks = [" "] * self._cells
        for moment, mark in [*((s.event, "^") for s in switches if s.moves), *((r, "*") for r in restarts)]:
            marks[min(self._cells - 1, self._slot(moment))] = mark
        return [*result, (" " * _LABEL + "".join(marks)).rstrip(), *LEGEND]

    def _slot(self, moment: float) -> int:
        return max(0, int((moment - self._start) / DURATION * self._cells))

    def _scale(self) -> str:
        """The line with the seconds."""
        scale = ""
        for second in range(0, int(DURATION), 3):
            scale = scale.ljust(int(second / DURATION * self._cells)) + f"{second}s"
        return scale


class Display:
    """Shows the demonstration: on a terminal as a live picture, in a file as lines.

    :param file: the file; standard output by default
    """

    def __init__(self, file: TextIO | None = None) -> None:
        file = file if file is not None else sys.stdout
        self._printer = Printer(file)
        self._console = self._printer.console
        self._live: Live | None = None
        self._strips: Strips | None = None

    @property
    def width(self) -> int:
        """Characters in a line."""
        return min(120, self._console.width) if self._console is not None else 79

    @property
    def live(self) -> bool:
        return self._console is not None

    def title(self, text: str) -> None:
        """Begin a section."""
        self._printer.line()
        self._printer.line(text, "bold")
        self._printer.line("─" * len(text), "dim")

    def tell(self, text: str, style: str = "") -> None:
        """Print a line, above the live picture if there is one."""
        self._printer.line(text, style)

    def end(self, stage: Stage, until: float) -> None:
        """Print the final strips."""
        self._stop_live()
        self._printer.line()
        for line in self._strip_lines(stage, until):
            if self._console is not None:
                self._console.print(coloured(line), soft_wrap=True)
            else:
                self._printer.line(line)

    def look(self, stage: Stage) -> None:
        """Redraw the live picture, if there is one."""
        if self._live is not None:
            self._live.update(self._picture(stage), refresh=True)

    def __enter__(self) -> Self:
        """Show the live picture, on a terminal."""
        if self._console is not None:
            from rich.live import Live

            # Only look() redraws it; rich's own thread would draw at any time.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop_live()

    def _stop_live(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(BrokenPipeError):
                live.stop()

    def _strip_lines(self, stage: Stage, until: float) -> list[str]:
        if self._strips is None:
            self._strips = Strips(stage.start, {p.tag: p.name for p in stage.programs}, self.width)
        self._strips.count(stage.tap.packets)
        return self._strips.lines(until, stage.switches, stage.restarts)

    def _picture(self, stage: Stage) -> RenderableType:
        from rich.text import Text

        picture = Text("\n")
        picture.append(f"{stage.elapsed:5.1f} of {DURATION:.0f} s   ")
        picture.append(f"effective interface: {stage.effective}\n", "bold")
        for line in self._strip_lines(stage, time.monotonic()):
            picture.append_text(coloured(line))
            picture.append("\n")
        for program in stage.programs:
            telemetry, reports = program.telemetry, program.reports
            answers = f"{len(telemetry.answered):,} of {len(telemetry.sent):,} datagrams answered"
            connections = f"{len(reports.connections)} connection{'s' if len(reports.connections) != 1 else ''}"
            picture.append(f"{program.name:<{_LABEL}}{answers}; {len(reports.answered):,} reports, {connections}\n", "dim")
        return picture


def coloured(line: str) -> Text:
    """A line of the strips, each letter in the colour of its interface."""
    from rich.text import Text

    text = Text(line)
    if line == LEGEND[0]:
        for letter, style in _STYLES.items():
            position = line.index(f"{letter} ")
            text.stylize(style, position, position + 1)
    elif line[:1].strip() and line != LEGEND[1]:
        for position in range(_LABEL, len(line)):
            text.stylize(_STYLES.get(line[position], ""), position, position + 1)
    else:
        text.stylize("dim")
    return text
