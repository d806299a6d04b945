"""Records what a program changes in a host's links, addresses, routes and rules, and replays it with iproute2.

``python -m tests.vpn.recorded [NAME ...]`` records again.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsock.testing.lab import Lab
from tests.linux.namespaces import Device, ip
from tests.vpn.machine import PATH, Machine
from tests.vpn.programs import KILL_SWITCHES, REDIRECTING, REPLACING, VPNS, WITHOUT_DEVICE, Vpn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DIRECTORY = Path(__file__).with_name("recorded")
_NETFILTER = {
    "nft": ("nft list ruleset", ["nft", "-f", "-"]),
    "iptables": ("iptables-save", ["iptables-restore"]),
    "ip6tables": ("ip6tables-save", ["ip6tables-restore"]),
}
"""By the suffix of the file: the commands that list and restore the firewall's rules."""


def _listed(host: Machine, what: str) -> list[tuple[str, str]]:
    """The lines that ``ip`` lists for each family, each with the family's option."""
    listed = [("", host.run(f"ip -4 {what}")), ("-6 ", host.run(f"ip -6 {what}"))]
    return [(six, line.strip()) for six, lines in listed for line in lines.splitlines()]


def _routes(host: Machine) -> set[str]:
    """The routes, without those that the kernel adds for an address."""
    lines = _listed(host, "route show table all")
    return {f"{six}route add {line}" for six, line in lines if "proto kernel" not in line and "table local" not in line}


def _rules(host: Machine) -> set[str]:
    parts = [(six, *line.partition(":")) for six, line in _listed(host, "rule")]
    return {f"{six}rule add pref {priority} {rule.strip()}" for six, priority, _, rule in parts}


def _policies(host: Machine) -> set[str]:
    """The outbound policies of IPsec. A kernel without IPsec lists none."""
    lines = (" ".join(line.replace("\\", " ").split()) for line in host.run("ip -oneline xfrm policy || true").splitlines())
    return {f"xfrm policy add {re.sub(r' ptype main| spi 0x[0-9a-f]+', '', line)}" for line in lines if " dir out " in line}


def _addresses(links: Iterable[dict[str, Any]]) -> set[str]:
    result = set()
    for link in links:
        for address in link["addr_info"]:
            if "fe80" not in address["local"]:
                six = "-6 " if address["family"] == "inet6" else ""
                peer = f" peer {address['address']}" if "address" in address else ""
                result.add(f"{six}address add {address['local']}{peer}/{address['prefixlen']} dev {link['ifname']}")
    return result


def _links(host: Machine) -> dict[str, dict[str, Any]]:
    return {link["ifname"]: link for link in json.loads(host.run("ip -json -details address"))}


def changes(host: Machine, event: Any) -> list[str]:
    """The commands of iproute2 that make the same changes as the event."""
    links, before = _links(host), [_routes(host), _rules(host), _policies(host)]
    event()
    links_after, after = _links(host), [_routes(host), _rules(host), _policies(host)]
    result = []
    for name in sorted(links_after.keys() - links.keys()):
        kind = links_after[name]["linkinfo"]["info_data"]["type"]
        result += [f"tuntap add {name} mode {kind}", f"link set {name} mtu {links_after[name]['mtu']} up"]
    result += sorted(_addresses(links_after.values()) - _addresses(links.values()))
    for old, new in zip(before, after, strict=True):
        result += [line.replace(" add ", " del ", 1) for line in sorted(old - new)]
        # The route to a gateway, without " via ", has to come before the routes by the gateway.
        result += sorted(new - old, key=lambda line: (" via " in line, line))
    return result


@contextlib.contextmanager
def replayed(name: str) -> Iterator[None]:
    """Repeat a program's changes in this thread's namespace. The process behind its device reads nothing.

    IPv6 addresses are usable when it returns: without one, the kernel does not choose the device by its routes.
    """
    lines = [line for line in (DIRECTORY / f"{name}.txt").read_text().splitlines() if not line.startswith("#")]
    lines = [f"{line} nodad" if line.startswith("-6 address add ") else line for line in lines]
    with contextlib.ExitStack() as stack:
        for line in lines:
            match line.split():
                case ["tuntap", "add", device, "mode", kind]:
                    stack.callback(Device(device, tap=kind == "tap").close)
        ip(*(line for line in lines if not line.startswith("tuntap")), *_neighbours(lines))
        for suffix, (_, restore) in _NETFILTER.items():
            if (file := DIRECTORY / f"{name}.{suffix}").exists():
                subprocess.run([str(shutil.which(restore[0], path=PATH)), *restore[1:]], input=file.read_bytes(), check=True)
        yield


def _neighbours(lines: list[str]) -> Iterator[str]:
    """Permanent neighbour entries for the gateways: nobody answers neighbour discovery on the replayed devices."""
    taps = [line.split()[2] for line in lines if line.startswith("tuntap") and line.endswith("tap")]
    gateways = {match.groups() for line in lines if (match := re.search(r" via (\S+) dev (\S+)", line))}
    for gateway, device in sorted(gateways):
        if device in taps:
            yield f"{'-6 ' if ':' in gateway else ''}neigh replace {gateway} lladdr 02:00:00:00:00:01 dev {device}"


def needed(name: str) -> list[str]:
    """The programs that a replay needs."""
    return ["ip", *(restore[0] for suffix, (_, restore) in _NETFILTER.items() if (DIRECTORY / f"{name}.{suffix}").exists())]


def _package(program: str) -> str:
    """The program's package and its version."""
    path = shutil.which(program, path=PATH)
    owner = subprocess.run(["dpkg-query", "--search", str(path)], capture_output=True, text=True, check=True).stdout.split(":")[0]
    shown = subprocess.run(["dpkg-query", "--show", owner], capture_output=True, text=True, check=True).stdout.split()
    return f"Debian's {' '.join(shown)}"


def record(vpn: Vpn) -> None:
    """Run a program and record its changes."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Lab() as lab,
        Machine(lab, "host", Path(directory)) as host,
        Machine(lab, "vpn", Path(directory)) as gate,
    ):
        if (reason := vpn.obstacle(host)) is not None:
            print(f"{vpn.name}: {reason}")
            return
        gate.run(vpn.serve)
        lines = changes(host, lambda: vpn.start(host))
        header = f"# {vpn.name}: what {_package(vpn.needs[0])} does on a host with the uplinks wifi0 and eth0"
        DIRECTORY.mkdir(exist_ok=True)
        (DIRECTORY / f"{vpn.name}.txt").write_text("\n".join([header, *lines, ""]))
        found = {suffix: host.run(save) for suffix, (save, _) in _NETFILTER.items()}
        if "\n*" in found["iptables"]:
            del found["nft"]  # nft lists the rules of iptables as comments
        for suffix, rules in found.items():
            kept = [line for line in rules.splitlines() if "fe80::" not in line and not line.startswith("#")]
            if kept:
                (DIRECTORY / f"{vpn.name}.{suffix}").write_text("\n".join([*kept, ""]))


def main(names: list[str]) -> None:
    for vpn in (*VPNS, *WITHOUT_DEVICE, *REPLACING, *REDIRECTING, *KILL_SWITCHES):
        if not names or vpn.name in names:
            record(vpn)


if __name__ == "__main__":
    main(sys.argv[1:])
