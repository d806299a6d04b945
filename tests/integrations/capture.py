"""Measures which libraries use the effective interface on which event loop, and writes a table.

``python -m tests.integrations.capture`` measures in the laboratory and writes ``docs/capture.md``.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Self, cast

import uvloop

import bindsock.eventloop
from bindsock.testing.lab import Lab
from tests.integrations.probes import PROBES, By, Probe
from tests.integrations.servers import Servers

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs/capture.md"
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "`bindsock.EventLoop`": bindsock.eventloop.EventLoop,
    "uvloop": uvloop.Loop,
    "`bindsock.loop_factory(uvloop.Loop)`": bindsock.eventloop.loop_factory(uvloop.Loop),
}
RUN = "asyncio, `bindsock run`"
COLUMNS = (*LOOPS, RUN)
_PATIENCE = 45.0


def measure(lab: Lab, servers: Servers, probe: Probe, loop: str) -> str:
    """Run a library on a loop: *bound*, *leaks*, or *n/a* if it cannot run on this loop."""
    servers.forget(probe.server)
    if probe.alone:
        command = [sys.executable, "-m", "tests.integrations.capture", probe.run.__name__, loop, servers.host]
        subprocess.run(command, check=True, cwd=ROOT, timeout=2 * _PATIENCE)
    else:
        try:
            _run(probe, servers, loop)
        except NotImplementedError:
            return "n/a"
    return _result(lab, servers, probe)


def _result(lab: Lab, servers: Servers, probe: Probe) -> str:
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


def measure_under_run(lab: Lab, servers: Servers) -> dict[str, str]:
    """Run every installed library on asyncio's own loop, in one process under ``bindsock run``: *bound* or *leaks* for each."""
    with UnderRun(servers) as program:
        results = {}
        for probe in PROBES:
            if probe.can_run:
                servers.forget(probe.server)
                program.run(probe)
                results[probe.name] = _result(lab, servers, probe)
        return results


class UnderRun:
    """A process under ``bindsock run`` that runs one probe after the other. It does not use bindsock itself."""

    def __init__(self, servers: Servers) -> None:
        program = [sys.executable, "-m", "tests.integrations.capture", servers.host, str(servers.authority_file)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bindsock", "run", "--quiet", "--", *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(timeout=_PATIENCE)
            finally:
                self._process.kill()

    def run(self, probe: Probe) -> None:
        """Run a probe in the process, and wait until it is done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{probe.run.__name__}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer == f"{probe.run.__name__}\n", answer


def _serve_probes(host: str, authority: str) -> None:
    """Run the probes named on standard input, one per line. The process has only the servers' address, not their objects."""
    pem = Path(authority).read_bytes()
    context = ssl.create_default_context(cadata=pem.decode())
    servers = cast("Servers", SimpleNamespace(host=host, context=context, authority_pem=pem))
    probes = {probe.run.__name__: probe for probe in PROBES}
    for line in sys.stdin:
        _run(probes[line.strip()], servers, "asyncio")
        print(line, end="", flush=True)


def _run_alone(name: str, loop: str, host: str) -> None:
    """Run a probe that needs its own process, in that process. It has only the servers' address, not their objects."""
    (probe,) = [probe for probe in PROBES if probe.run.__name__ == name]
    _run(probe, cast("Servers", SimpleNamespace(host=host)), loop)


def table(results: dict[tuple[str, str], str], probes: Iterable[Probe] = PROBES) -> str:
    """The results as two Markdown tables: the libraries alone, and with bindsock's integrations."""
    alone = [p for p in probes if p.by is not By.INTEGRATION]
    integrated = [p for p in probes if p.by is By.INTEGRATION]
    return f"{_table(results, alone)}\nWith an integration, whatever the event loop:\n\n{_table(results, integrated)}"


def _table(results: dict[tuple[str, str], str], probes: list[Probe]) -> str:
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [row(p, {column: results[p.name, column] for column in COLUMNS}) for p in probes]
    counts = [sum(results[p.name, column] == "bound" for p in probes) for column in COLUMNS]
    lines.append("| **bound** | " + " | ".join(f"**{count} of {len(probes)}**" for count in counts) + " |")
    return "\n".join(lines) + "\n"


def row(probe: Probe, results: Mapping[str, str]) -> str:
    """The table's row of a library.

    :param results: the library's results by column
    """
    return f"| {probe.name} | " + " | ".join(_cell(results[column]) for column in COLUMNS) + " |"


def _cell(result: str) -> str:
    return {"bound": "**bound**"}.get(result, result)


def written() -> str:
    """The table in the documentation."""
    return TABLE.read_text().split(BEGIN)[1].split(END)[0]


def read(text: str) -> dict[tuple[str, str], str]:
    """Parse a table."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| |", "| **bound**"))]
    rows = [[cell.strip().strip("*") for cell in line.strip("|").split(" | ")] for line in lines]
    return {(name, loop): result for name, *results in rows for loop, result in zip(COLUMNS, results, strict=True)}


def measure_all() -> dict[tuple[str, str], str]:
    """Run every library on every loop, with a VPN that has the default route."""
    with Lab() as lab, lab.inside():
        lab.vpn_up("metric")
        with Servers(lab) as servers:
            results = {(p.name, loop): measure(lab, servers, p, loop) for p in PROBES for loop in LOOPS}
            return results | {(name, RUN): result for name, result in measure_under_run(lab, servers).items()}


def main(arguments: Sequence[str] = ()) -> None:
    if arguments:
        (_serve_probes if len(arguments) == 2 else _run_alone)(*arguments)
        return
    measured = table(measure_all())
    before, _, rest = TABLE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    TABLE.write_text(before + BEGIN + measured + END + after)


if __name__ == "__main__":
    main(sys.argv[1:])
