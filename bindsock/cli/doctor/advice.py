"""Derives the advice from a report. It does not ask the system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bindsock.model.network import InterfaceKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def advice(report: Mapping[str, Any], *, probed: bool = False) -> list[str]:
    """What to do, one sentence for each step, in order. If nothing is wrong, the only sentence says so.

    :param probed: whether a probe was asked for
    """
    pin = report.get("pinned")
    if pin is not None:
        if pin["problem"] is not None:
            return [pin["problem"]]
        report = {**report, "uplinks": [uplink for uplink in report["uplinks"] if uplink["name"] == pin["name"]]}
    links = _links(report) if pin is None else ()
    steps = list(dict.fromkeys([*links, *_routes(report), *_firewall(report), *_filter(report), *_probes(report)]))
    if not steps and probed and not report["probes"]:
        steps = [_unprobed(report)]
    if not steps:
        names = list(dict.fromkeys(d["interface"] for d in report["effective"] if d["interface"] is not None))
        where = f"connections leave by {' and '.join(names)}" if names else "there is no interface to connect by"
        steps = [f"nothing: {where}"]
    return steps


def _unprobed(report: Mapping[str, Any]) -> str:
    host = report["target"]["host"]
    reasons = "; ".join(f"{u['name']} {f['reason']}" for u in report["uplinks"] for f in u["families"] if not f["fit"])
    return f"nothing was probed, since no uplink can reach {host} ({reasons or 'its address family was not asked for'})"


def _links(report: Mapping[str, Any]) -> Iterator[str]:
    uplinks = report["uplinks"]
    if not any(family["fit"] for uplink in uplinks for family in uplink["families"]):
        reasons = "; ".join(f"{u['name']} {f['reason']}" for u in uplinks for f in u["families"] if f["reason"])
        yield f"connect an uplink: only tunnels have carrier and an address ({reasons or 'there is no other interface'})"


def _routes(report: Mapping[str, Any]) -> Iterator[str]:
    """Advise a route for each family in which no uplink has one."""
    pin = report.get("pinned")
    command = f"bindsock repair --interface {pin['name']}" if pin is not None else "bindsock repair"
    served = {f["family"] for u in report["uplinks"] for f in u["families"] if f["usable"]}
    for uplink in report["uplinks"]:
        for family in uplink["families"]:
            if family["route_hint"] is not None and family["family"] not in served:
                by_repair = f"; or let bindsock do it: `{command}`, which shows what it would do"
                yield family["route_hint"] + ("" if uplink["kind"] == InterfaceKind.TUNNEL else by_repair)


def _firewall(report: Mapping[str, Any]) -> Iterator[str]:
    for obstacle in report["firewall"]["obstacles"]:
        name, rule = obstacle["interface"], obstacle["rule"]
        if obstacle["verdict"] == "redirect":
            yield (
                f"`{rule}` redirects packets that leave by {name} to a program on this host, which a bound socket cannot reach: "
                "exempt the destination from the redirection"
            )
        else:
            may = "drops" if obstacle["certain"] else "may drop"
            mark = obstacle.get("exempt_mark")
            by_mark = f"; packets with the mark {mark:#x} pass: with CAP_NET_ADMIN, give `--mark {mark:#x}`" if mark else ""
            yield (
                f"a firewall {may} packets that leave by {name}, by `{rule}`; if it is the VPN's kill switch, bindsock does not "
                f"circumvent it: turn it off, or exempt the program, in the VPN's settings{by_mark}"
            )


def _filter(report: Mapping[str, Any]) -> Iterator[str]:
    for uplink in report["uplinks"]:
        if uplink["strict_filter"]:
            name = uplink["name"]
            yield (
                f"{name} drops answers to bound sockets (rp_filter=1): `sysctl net.ipv4.conf.all.rp_filter=2`, or "
                f"net.ipv4.conf.{name}.rp_filter"
            )


def _probes(report: Mapping[str, Any]) -> Iterator[str]:
    probes = report["probes"]
    dropping = {(o["interface"]) for o in report["firewall"]["obstacles"]}
    answered = {p["interface"] for p in probes if p["tcp"] is not None and p["tcp"]["error"] is None}
    for each in probes:
        name, family = each["interface"], each["family"]
        if each["dns"] is not None and each["dns"]["error"] is not None and name not in answered:
            yield f"names cannot be looked up by {name} over {family} ({each['dns']['error']}): check its name servers"
        tcp = each["tcp"]
        if tcp is None or tcp["error"] is None or name in dropping or _explained(report, name, family):
            continue
        unseen = report["firewall"]["failures"]
        hidden = "; a firewall may drop the packets: run this as root to see its rules" if unseen else ""
        yield f"{tcp['address']} port {tcp['port']} cannot be reached by {name} ({tcp['error']}){hidden}"


def _explained(report: Mapping[str, Any], name: str, family: str) -> bool:
    """Whether another step already explains why the probe failed."""
    for uplink in report["uplinks"]:
        if uplink["name"] == name:
            return bool(uplink["strict_filter"]) or any(f["family"] == family and f["route_hint"] for f in uplink["families"])
    return False
