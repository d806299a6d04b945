"""What to do, in order: out of a report, without a look at the system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def advice(report: Mapping[str, Any]) -> list[str]:
    """One sentence a step; what comes first has to be done first. A last one says so if nothing is wrong."""
    steps = list(dict.fromkeys([*_links(report), *_routes(report), *_firewall(report), *_filter(report), *_probes(report)]))
    if not steps:
        names = list(dict.fromkeys(d["interface"] for d in report["effective"] if d["interface"] is not None))
        where = f"connections leave by {' and '.join(names)}" if names else "there is nothing to connect by"
        steps = [f"nothing: {where}"]
    return steps


def _links(report: Mapping[str, Any]) -> Iterator[str]:
    uplinks = report["uplinks"]
    if not any(family["fit"] for uplink in uplinks for family in uplink["families"]):
        reasons = "; ".join(f"{u['name']} {f['reason']}" for u in uplinks for f in u["families"] if f["reason"])
        yield f"connect an uplink: no interface but tunnels has carrier and an address ({reasons or 'there is none at all'})"


def _routes(report: Mapping[str, Any]) -> Iterator[str]:
    """A family that no uplink serves needs a route; where one does, the others need not."""
    served = {f["family"] for u in report["uplinks"] for f in u["families"] if f["usable"]}
    for uplink in report["uplinks"]:
        for family in uplink["families"]:
            if family["cure"] is not None and family["family"] not in served:
                yield f"{family['cure']}; or let bindsock do it: `bindsock repair`, which shows what it would do"


def _firewall(report: Mapping[str, Any]) -> Iterator[str]:
    for obstacle in report["firewall"]["obstacles"]:
        name, rule = obstacle["interface"], obstacle["rule"]
        if obstacle["verdict"] == "redirect":
            yield (
                f"what leaves by {name} is redirected to a program on this host by `{rule}`; a bound socket cannot follow: "
                "except its destination from the redirection"
            )
        else:
            may = "drops" if obstacle["certain"] else "may drop"
            yield (
                f"a firewall {may} what leaves by {name}, by `{rule}`; if it is the VPN's kill switch, bindsock does not go "
                "around it: turn it off, or except the program, in the VPN's settings"
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
            yield f"names cannot be looked up by {name} over {family} ({each['dns']['error']}): look at its name servers"
        tcp = each["tcp"]
        if tcp is None or tcp["error"] is None or name in dropping or _explained(report, name, family):
            continue
        unseen = report["firewall"]["failures"]
        hidden = "; a firewall may be in the way, which only root may read: run this as root" if unseen else ""
        yield f"{tcp['address']} port {tcp['port']} is not reached by {name} ({tcp['error']}){hidden}"


def _explained(report: Mapping[str, Any], name: str, family: str) -> bool:
    """Whether another step says already why nothing is reached."""
    for uplink in report["uplinks"]:
        if uplink["name"] == name:
            return bool(uplink["strict_filter"]) or any(f["family"] == family and f["cure"] for f in uplink["families"])
    return False
