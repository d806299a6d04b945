"""Facts about the system: privileges, containers, name servers, multipath TCP, firewalls. Reading any of them may be
forbidden."""

from __future__ import annotations

import ipaddress
import os
import platform
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsock.cli.doctor.firewall import Chain, from_iptables, from_nft

if TYPE_CHECKING:
    from collections.abc import Callable

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
"""Bit numbers in ``include/uapi/linux/capability.h``."""
_RESOLVED = "run/systemd/resolve/io.systemd.Resolve"
_PATH_MANAGERS = {"0": "in-kernel", "1": "userspace"}
_SECONDS = 5.0


def machine() -> dict[str, Any]:
    """System, release and Python."""
    return {"system": platform.system(), "release": platform.release(), "python": platform.python_version()}


def capabilities(root: Path = Path("/")) -> list[str] | None:
    """Which of CAP_NET_ADMIN and CAP_NET_RAW this thread has; ``None`` if that is unknown."""
    text = _read(root / "proc/thread-self/status")
    line = next((line for line in (text or "").splitlines() if line.startswith("CapEff:")), None)
    if line is None:
        return None
    return [name for name, bit in _CAPABILITIES.items() if int(line.split()[1], 16) >> bit & 1]


def container(root: Path = Path("/")) -> str | None:
    """The container manager, by the files that it creates; ``None`` if there are none."""
    if (named := _read(root / "run/systemd/container")) and named.strip():
        return named.strip()
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / "var/run/secrets/kubernetes.io").exists():
        return "kubernetes"
    return None


def names(root: Path = Path("/")) -> dict[str, Any]:
    """Whether systemd-resolved is running, and the name servers in resolv.conf."""
    text = _read(root / "etc/resolv.conf")
    servers = [line.split()[1] for line in (text or "").splitlines() if line.startswith("nameserver") and len(line.split()) > 1]
    return {"systemd_resolved": (root / _RESOLVED).exists(), "servers": servers}


def usable_servers(servers: list[str]) -> list[str]:
    """The name servers that can be asked by an interface, that is, all except those on this host."""
    found = []
    for server in servers:
        try:
            address = ipaddress.ip_address(server)
        except ValueError:
            continue
        if not address.is_loopback:
            found.append(server)
    return found


def multipath(root: Path = Path("/")) -> dict[str, Any]:
    """Whether the kernel has multipath TCP, whether it is enabled, and which path manager it uses."""
    enabled = _read(root / "proc/sys/net/mptcp/enabled")
    manager = _read(root / "proc/sys/net/mptcp/pm_type")
    return {
        "enabled": None if enabled is None else enabled.strip() == "1",
        "path_manager": None if manager is None else _PATH_MANAGERS.get(manager.strip(), manager.strip()),
    }


def firewall() -> tuple[list[Chain], list[str]]:
    """The firewall's chains in this network namespace, and why any of them could not be listed."""
    chains: list[Chain] = []
    failures: list[str] = []

    def listed(command: list[str], parse: Callable[[str], list[Chain]]) -> None:
        program = shutil.which(command[0], path=_PATH)
        if program is None:
            return
        try:
            done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=_SECONDS, check=False)
            if done.returncode:
                reason = next(iter(done.stderr.strip().splitlines()), f"exit status {done.returncode}")
                failures.append(f"{command[0]}: {reason}")
            else:
                chains.extend(parse(done.stdout))
        except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError) as error:
            failures.append(f"{command[0]}: {error}")

    listed(["iptables-save"], lambda text: from_iptables(text, socket.AF_INET))
    listed(["ip6tables-save"], lambda text: from_iptables(text, socket.AF_INET6))
    listed(["nft", "--json", "list", "ruleset"], from_nft)
    return chains, failures


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None
