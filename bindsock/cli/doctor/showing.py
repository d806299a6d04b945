"""Prints the report for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bindsock.cli.output import BAD, DIM, GOOD, WARN, Printer, columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def show(printer: Printer, report: Mapping[str, Any]) -> None:
    """Print the report. The advice comes last, so that it is visible in a terminal."""
    machine = report["machine"]
    _head(printer, f"bindsock doctor: {machine['system']} {machine['release']}, Python {machine['python']}")
    _section(printer, "who has the default route", _default(report))
    _section(printer, "uplinks", _uplinks(report))
    _section(printer, "in the way", _in_the_way(report))
    _section(printer, "this process", _process(report))
    if report["probes"]:
        target = report["target"]
        _section(printer, f"probe: {target['host']} port {target['port']}", _probes(report))
    if report["failures"]:
        _section(printer, "could not be examined", [(line, DIM) for line in report["failures"]])
    printer.line()
    printer.line("what to do", "bold")
    for number, step in enumerate(report["advice"], 1):
        printer.line(f"  {number}. {step}", GOOD if step.startswith("nothing: ") else WARN)


def _head(printer: Printer, text: str) -> None:
    printer.line(text, "bold")


def _section(printer: Printer, title: str, lines: Sequence[tuple[str, str]]) -> None:
    printer.line()
    printer.line(title, "bold")
    for text, style in lines:
        printer.line(f"  {text}", style)


def _table(rows: Sequence[Sequence[str]], styles: Sequence[str], right: Sequence[int] = ()) -> list[tuple[str, str]]:
    return list(zip(columns(rows, right=right), styles, strict=True))


def _default(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(d["family"], d["interface"] or "nobody", d["how"]) for d in report["default"]]
    lines = _table(rows, [WARN if d["tunnel"] else "" for d in report["default"]])
    lines += [(f"looks like {g['program']}: {g['evidence']}", "") for g in report["programs"]]
    if not report["programs"] and any(d["tunnel"] for d in report["default"]):
        lines.append(("the program is unknown", DIM))
    lines += [(note, DIM) for d in report["effective"] for note in d["notes"]]
    return lines


def _uplinks(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows, styles = [], []
    for uplink in report["uplinks"]:
        for number, family in enumerate(uplink["families"]):
            mark = "*" if family["effective"] else "+" if family["usable"] else "-"
            via = f"via {family['gateway']}" if family["gateway"] else ""
            said = via if family["usable"] else ", ".join(filter(None, (family["reason"], via)))
            strict = " [rp_filter is strict]" if uplink["strict_filter"] and family["family"] == "IPv4" else ""
            rows.append(
                (
                    mark,
                    uplink["name"] if not number else "",
                    uplink["kind"] if not number else "",
                    family["family"],
                    said + strict,
                )
            )
            styles.append(WARN if strict else GOOD if family["usable"] else DIM)
    return _table(rows, styles) or [("none", BAD)]


def _in_the_way(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    firewall = report["firewall"]
    lines = [
        (f"{o['interface']}: {'' if o['certain'] else 'perhaps '}{o['verdict']} by {o['rule']}", BAD if o["certain"] else WARN)
        for o in firewall["obstacles"]
    ]
    lines += [(f"not readable: {failure}", DIM) for failure in firewall["failures"]]
    return lines or [("no firewall rule that drops packets that leave by an uplink", DIM)]


def _process(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    names, multipath = report["names"], report["multipath"]
    capabilities = report["capabilities"]
    told = "unknown" if capabilities is None else ", ".join(capabilities) or "neither CAP_NET_ADMIN nor CAP_NET_RAW"
    enabled = {None: "none", True: "enabled", False: "disabled"}[multipath["enabled"]]
    manager = f", {multipath['path_manager']} path manager" if multipath["path_manager"] and multipath["enabled"] else ""
    rows = [
        ("capabilities", told),
        ("container", report["container"] or "none seen"),
        ("systemd-resolved", "yes" if names["systemd_resolved"] else "no"),
        ("name servers", ", ".join(names["servers"]) or "none in resolv.conf"),
        ("multipath TCP", enabled + manager),
    ]
    return _table(rows, [DIM] * len(rows))


def _probes(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows, styles = [], []
    for each in report["probes"]:
        dns, tcp = each["dns"], each["tcp"]
        name = "" if dns is None else f"DNS {_took(dns)}" + (f" by {dns['by']}" if dns["by"] != "the interface" else "")
        rows.append((each["interface"], each["family"], name, "" if tcp is None else f"TCP {_took(tcp)}"))
        failed = any(step is not None and step["error"] is not None for step in (dns, tcp))
        styles.append(BAD if failed else GOOD)
    return _table(rows, styles)


def _took(step: Mapping[str, Any]) -> str:
    if step["error"] is not None:
        return f"failed: {step['error']}"
    return f"{step['ms']:g} ms" + (f" from {step['source']}" if step.get("source") else f" {step['address']}")
