"""What a reading of the network costs, against pyroute2 if that is installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address

from bindsock import kernel as kernels
from bindsock.model.network import FAMILIES
from bindsock.routing.effective import Decider

from .figures import Figure, figure, paired


def _seconds(call: Callable[[], object], runs: int) -> list[float]:
    taken = []
    for _ in range(runs):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return taken


def measure(destination: str, runs: int) -> list[Figure]:
    kernel = kernels.current()
    network = kernel.network()
    interface = next(i for i in network.interfaces.values() if (i.index, FAMILIES[0]) in network.reachable)
    address = ip_address(destination)
    ours = _seconds(kernel.network, runs)
    figures = [
        figure("one reading of the network", ours, "us", scale=1e6),
        figure("has_route", _seconds(lambda: kernel.has_route(interface, address), runs), "us", scale=1e6),
        figure(
            "decide for both families", _seconds(lambda: [Decider(network).decide(f) for f in FAMILIES], runs), "us", scale=1e6
        ),
    ]
    try:
        import pyroute2
    except ImportError:
        return figures
    with pyroute2.IPRoute() as ipr:

        def theirs() -> None:
            ipr.get_links()
            ipr.get_addr()
            for family in FAMILIES:
                ipr.get_routes(family=family)
                ipr.get_rules(family=family)

        theirs()
        pairs = [(_seconds(kernel.network, 1)[0], _seconds(theirs, 1)[0]) for _ in range(runs)]
    figures.append(paired("one reading, against the same by pyroute2", *map(list, zip(*pairs, strict=True))))
    return figures
