"""Which libraries leave by the effective interface on which event loop: measured, as a table.

``python -m tests.integrations.capture`` measures in the laboratory and writes ``docs/capture.md`` and the README's copy.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import uvloop

import bindsock.eventloop
from bindsock.testing.lab import Lab
from tests.integrations.probes import PROBES, By, Probe
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
    servers.sources.pop(probe.server, None)
    if probe.alone:
        command = [sys.executable, "-m", "tests.integrations.capture", probe.run.__name__, loop, servers.host]
        subprocess.run(command, check=True, cwd=TABLES[1].parent, timeout=2 * _PATIENCE)
    else:
        try:
            _run(probe, servers, loop)
        except NotImplementedError:
            return "n/a"
    interfaces = {lab.interface_of(source) for source in servers.wait_for(probe.server)}
    if interfaces == {"wifi0"}:
        return "bound"
    assert interfaces == {"tun0"}, f"{probe.name} came by {interfaces}"
    return "leaks"


def _run(probe: Probe, servers: Servers, loop: str) -> None:
    async def run() -> None:
        async with asyncio.timeout(_PATIENCE):
            await probe.run(servers)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(run())


def _run_alone(name: str, loop: str, host: str) -> None:
    """Run a probe that needs a process of its own, in that process. It knows no more of the servers than their address."""
    (probe,) = [probe for probe in PROBES if probe.run.__name__ == name]
    _run(probe, cast("Servers", SimpleNamespace(host=host)), loop)


def table(results: dict[tuple[str, str], str], probes: Iterable[Probe] = PROBES) -> str:
    """The results as two Markdown tables: the libraries by themselves, and with bindsock's integrations."""
    alone = [p for p in probes if p.by is not By.INTEGRATION]
    integrated = [p for p in probes if p.by is By.INTEGRATION]
    return f"{_table(results, alone)}\nWith an integration, whatever the event loop:\n\n{_table(results, integrated)}"


def _table(results: dict[tuple[str, str], str], probes: list[Probe]) -> str:
    lines = ["| | " + " | ".join(LOOPS) + " |", "|---" * (len(LOOPS) + 1) + "|"]
    lines += [row(p, {loop: results[p.name, loop] for loop in LOOPS}) for p in probes]
    counts = [sum(results[p.name, loop] == "bound" for p in probes) for loop in LOOPS]
    lines.append("| **bound** | " + " | ".join(f"**{count} of {len(probes)}**" for count in counts) + " |")
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
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| |", "| **bound**"))]
    rows = [[cell.strip().strip("*") for cell in line.strip("|").split(" | ")] for line in lines]
    return {(name, loop): result for name, *results in rows for loop, result in zip(LOOPS, results, strict=True)}


def measure_all() -> dict[tuple[str, str], str]:
    """Run every library on every loop, beneath a VPN that has the default route."""
    with Lab() as lab, lab.inside():
        lab.vpn_up("metric")
        with Servers(lab) as servers:
            return {(p.name, loop): measure(lab, servers, p, loop) for p in PROBES for loop in LOOPS}


def main(arguments: Sequence[str] = ()) -> None:
    if arguments:
        _run_alone(*arguments)
        return
    measured = table(measure_all())
    for path in TABLES:
        before, _, rest = path.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        path.write_text(before + BEGIN + measured + END + after)


if __name__ == "__main__":
    main(sys.argv[1:])
