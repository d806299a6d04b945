"""Which libraries leave by the effective interface on which event loop: measured, as a table.

``python -m tests.integrations.capture`` measures in the laboratory and writes ``docs/capture.md`` and the README's copy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import uvloop

import bindsock.eventloop
from bindsock.testing.lab import Lab
from tests.integrations.probes import PROBES, Probe
from tests.integrations.servers import Servers

TABLES = tuple(Path(__file__).parents[2] / name for name in ("docs/capture.md", "README.md"))
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "`bindsock.EventLoop`": bindsock.eventloop.EventLoop,
    "uvloop": uvloop.Loop,
    "`bindsock.loop_factory(uvloop.Loop)`": bindsock.eventloop.loop_factory(uvloop.Loop),
}
_PATIENCE = 20.0


def measure(lab: Lab, servers: Servers, probe: Probe, loop: str) -> str:
    """*bound*, *leaks*, or *n/a* where the loop cannot do it at all."""

    async def run() -> None:
        async with asyncio.timeout(_PATIENCE):
            await probe.run(servers)

    servers.sources.pop(probe.server, None)
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        try:
            runner.run(run())
        except NotImplementedError:
            return "n/a"
    interfaces = {lab.interface_of(source) for source in servers.wait_for(probe.server)}
    if interfaces == {"wifi0"}:
        return "bound"
    assert interfaces == {"tun0"}, f"{probe.name} came by {interfaces}"
    return "leaks"


def table(results: dict[tuple[str, str], str], probes: Iterable[Probe] = PROBES) -> str:
    """The results as a Markdown table."""
    lines = ["| | " + " | ".join(LOOPS) + " |", "|---" * (len(LOOPS) + 1) + "|"]
    lines += [row(p, {loop: results[p.name, loop] for loop in LOOPS}) for p in probes]
    counts = [sum(results[p.name, loop] == "bound" for p in probes) for loop in LOOPS]
    lines.append("| **bound** | " + " | ".join(f"**{count} of {len(PROBES)}**" for count in counts) + " |")
    return "\n".join(lines) + "\n"


def row(probe: Probe, results: Mapping[str, str]) -> str:
    """The table's row of a library.

    :param results: by loop
    """
    return f"| {probe.name} | " + " | ".join(_cell(results[loop]) for loop in LOOPS) + " |"


def _cell(result: str) -> str:
    return {"bound": "**bound**"}.get(result, result)


def written() -> list[str]:
    """The table as it stands in each place."""
    return [path.read_text().split(BEGIN)[1].split(END)[0] for path in TABLES]


def read(text: str) -> dict[tuple[str, str], str]:
    """The results that a table tells."""
    rows = [[cell.strip().strip("*") for cell in line.strip("|").split(" | ")] for line in text.splitlines()[2:-1]]
    return {(name, loop): result for name, *results in rows for loop, result in zip(LOOPS, results, strict=True)}


def measure_all() -> dict[tuple[str, str], str]:
    """Run every library on every loop, beneath a VPN that has the default route."""
    with Lab() as lab, lab.inside():
        lab.vpn_up("metric")
        with Servers(lab) as servers:
            return {(p.name, loop): measure(lab, servers, p, loop) for p in PROBES for loop in LOOPS}


def main() -> None:
    measured = table(measure_all())
    for path in TABLES:
        before, _, rest = path.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        path.write_text(before + BEGIN + measured + END + after)


if __name__ == "__main__":
    main()
