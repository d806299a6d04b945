"""The timeline: an SVG picture that shows by which interface each packet left, with a panel for each program."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from bindsock.cli.demo.measuring import TUNNEL
from bindsock.cli.demo.scenario import BINDSOCK, BY_HAND, PLAIN, UPLINKS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bindsock.cli.demo.measuring import Observation

_ROWS = (*UPLINKS, TUNNEL)
_WIDTH, _LEFT, _RIGHT, _TOP = 960, 96, 24, 86
_ROW, _TITLE, _GAP = 18, 24, 16
_PLOT = _WIDTH - _LEFT - _RIGHT
_PANEL = _TITLE + len(_ROWS) * _ROW
_TICK = 1.0
"""The width of a packet's mark, in pixels."""

_SUBTITLES = {
    BINDSOCK: "the effective interface, always",
    PLAIN: "unbound: all of it in the VPN's tunnel",
    BY_HAND: "plain asyncio, SO_BINDTODEVICE once: clings to what was effective when it started",
}
_STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #24292f }
.title { font-size: 17px; font-weight: 600 } .name { font-weight: 600 } .small { font-size: 11.5px } .faint { fill: #656d76 }
.card { fill: #ffffff; stroke: #d0d7de } .row { fill: #f6f8fa } .effective { fill: #ddf4e4 } .away { fill: #e3e6ea }
.event { stroke: #8c959f; stroke-dasharray: 3 3 } .again { fill: #656d76 }
.wifi0 { fill: #2563c9 } .eth0 { fill: #12823f } .wwan0 { fill: #b26a00 } .tun0 { fill: #7d3fc4 } .lost { fill: #d1242f }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .faint { fill: #9198a1 }
.card { fill: #0d1117; stroke: #3d444d } .row { fill: #151b23 } .effective { fill: #12381f } .away { fill: #2a313c }
.event { stroke: #656c76 } .again { fill: #9198a1 }
.wifi0 { fill: #6ea8fe } .eth0 { fill: #4ac26b } .wwan0 { fill: #e3a13b } .tun0 { fill: #b88cf2 } .lost { fill: #ff7b72 }
}
""".strip()


def svg(seen: Observation) -> str:
    """Draw what was observed."""
    return _Drawing(seen).text()


class _Drawing:
    def __init__(self, seen: Observation) -> None:
        self._seen = seen
        self._scale = _PLOT / (seen.end - seen.start)
        self._height = _TOP + len(seen.programs()) * (_PANEL + _GAP) + 50
        self._parts: list[str] = []

    def text(self) -> str:
        add = self._parts.append
        summary = "Which interface each packet left by while uplinks come and go while a VPN is up"
        add(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {self._height}" width="{_WIDTH}" '
            f'height="{self._height}" role="img" aria-label="{summary}">'
        )
        add(f"<title>{summary}</title><style>{_STYLE}</style>")
        add(f'<rect class="card" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{self._height - 1}" rx="8"/>')
        self._label(20, 30, "Which interface each packet left by", "title")
        self._label(_WIDTH - _RIGHT, 30, "three uplinks, a VPN on tun0 owns the default route all the time", "small faint", "end")
        for number, program in enumerate(self._seen.programs()):
            self._panel(program, _TOP + number * (_PANEL + _GAP))
        self._events()
        self._axis()
        add("</svg>")
        return "\n".join(self._parts) + "\n"

    def _panel(self, program: str, top: float) -> None:
        udp, tcp = self._seen.flow(program, "UDP"), self._seen.flow(program, "TCP")
        self._label(20, top + 14, program, "name")
        self._label(_LEFT + 40, top + 14, _SUBTITLES.get(program, ""), "faint")
        self._label(_WIDTH - _RIGHT, top + 14, f"{len(udp.sent):,} datagrams, {len(udp.lost):,} lost", "", "end")
        for number, interface in enumerate(_ROWS):
            y = top + _TITLE + number * _ROW
            self._label(_LEFT - 10, y + 12.5, interface, "small faint", "end")
            self._rectangle("row", _LEFT, y, _PLOT, _ROW - 2)
            for begin, end in self._away(interface):
                self._rectangle("away", self._x(begin), y, self._x(end) - self._x(begin), _ROW - 2)
            for begin, end in self._effective(interface):
                self._rectangle("effective", self._x(begin), y, self._x(end) - self._x(begin), _ROW - 2)
            self._ticks(interface, (t for t, i in udp.packets if i == interface), y + 1.5, 8)
            self._ticks(interface, (t for t, i in tcp.packets if i == interface), y + 11, 3.5)
        # Unanswered datagrams are drawn as a line below the interface that was effective then.
        for number, interface in enumerate(_ROWS):
            spans = self._effective(interface)
            lost = [t for t in udp.lost if any(begin <= t < end for begin, end in spans)]
            self._ticks("lost", lost, top + _TITLE + number * _ROW + _ROW - 4, 2)
        if program == BY_HAND:
            for moment in self._seen.restarts:
                x, y = self._x(moment), top + _TITLE + (len(_ROWS) - 1) * _ROW
                self._parts.append(f'<path class="again" d="M{x - 4:.1f} {y + 8}h8l-4 -6z"/>')
                self._label(x + 8, y + 12.5, "started again by its operator", "small faint")

    def _events(self) -> None:
        for switch in self._seen.switches:
            x = self._x(switch.event)
            bottom = self._height - 58
            self._parts.append(f'<path class="event" d="M{x:.1f} {_TOP - 14}V{bottom}"/>')
            self._label(x, _TOP - 20, switch.label, "small", "middle")

    def _axis(self) -> None:
        y = self._height - 42
        for second in range(0, int(self._seen.end - self._seen.start) + 1, 3):
            self._label(self._x(self._seen.start + second), y, f"{second} s", "small faint", "middle")
        legend = "thick: UDP, thin: TCP · green: the effective interface · grey: not usable · red: sent, never answered"
        self._label(_WIDTH / 2, self._height - 16, legend, "small faint", "middle")

    def _away(self, interface: str) -> list[tuple[float, float]]:
        """When the interface was not usable."""
        spans: list[tuple[float, float]] = []
        since: float | None = None
        for switch in self._seen.switches:
            if switch.interface == interface and switch.usable and since is not None:
                spans.append((since, switch.event))
                since = None
            elif switch.interface == interface and not switch.usable:
                since = switch.event
        return [*spans, (since, self._seen.end)] if since is not None else spans

    def _effective(self, interface: str) -> list[tuple[float, float]]:
        """When the interface was the effective one."""
        moves = [(self._seen.start, UPLINKS[0]), *((s.event, s.effective) for s, _ in self._seen.moves())]
        ends = [*(moment for moment, _ in moves[1:]), self._seen.end]
        return [(begin, end) for (begin, name), end in zip(moves, ends, strict=True) if name == interface]

    def _ticks(self, style: str, moments: Iterable[float], y: float, height: float) -> None:
        """Draw a mark for each moment; marks that touch become one."""
        path = []
        begin = end = None
        for x in sorted(self._x(moment) for moment in moments):
            if end is None or begin is None or x > end + _TICK / 2:
                if begin is not None and end is not None:
                    path.append(f"M{begin:.1f} {y}h{end - begin:.1f}v{height}H{begin:.1f}z")
                begin = x
            end = x + _TICK
        if begin is not None and end is not None:
            path.append(f"M{begin:.1f} {y}h{end - begin:.1f}v{height}H{begin:.1f}z")
        if path:
            self._parts.append(f'<path class="{style}" d="{"".join(path)}"/>')

    def _rectangle(self, style: str, x: float, y: float, width: float, height: float) -> None:
        self._parts.append(f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>')

    def _label(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        attributes = (f' class="{style}"' if style else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(text)}</text>')

    def _x(self, moment: float) -> float:
        return _LEFT + (moment - self._seen.start) * self._scale
