"""``python -m tests.chaos``: random changes of the laboratory's network under connections of every kind."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import sys
from collections.abc import Iterator
from typing import Any, get_args

from rich.console import Console

from bindsock.testing.lab import LabUnavailable, VpnMode, available, enter_user_namespace
from tests.chaos.networks import DRAWN, NETWORKS
from tests.chaos.running import Failed, Outcome, Settings, run

NO_VPN, ALL = "none", "all"
MODES: tuple[str, ...] = (NO_VPN, *get_args(VpnMode))
OK, FAILED, UNAVAILABLE, INTERRUPTED = 0, 1, 3, 130
_EPILOG = """\
Each round changes the network for some seconds, makes it whole again and waits until
every conversation goes on. Checked are: every packet that leaves the host, by device
and kind; the sums of the datagrams; ends of streams that were none; conversations that
do not go on; descriptors and memory.

exit status: 0 nothing failed; 1 something did; 3 the laboratory cannot run here;
130 after Ctrl-C
"""


def parse(arguments: list[str] | None = None) -> tuple[Settings, bool]:
    """Parse the command line: the settings, and whether to print the outcome as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=None, help="determines the actions (default: a random one, which is shown)")
    parser.add_argument("--minutes", type=_positive, default=1.0, help="for how long rounds are begun (default: 1)")
    parser.add_argument("--vpn", choices=MODES, action="append", help="the VPN's mode (repeatable; default: all of them in turn)")
    parser.add_argument(
        "--network",
        choices=(*NETWORKS, DRAWN, ALL),
        action="append",
        help=f"the uplinks (repeatable; '{DRAWN}': of any kinds; default: two or three ordinary ones, depending on the seed)",
    )
    parser.add_argument("--round-seconds", type=_positive, default=20.0, metavar="S", help="how long a round's actions take")
    parser.add_argument("--round", type=int, metavar="K", help="only this round of the seed")
    parser.add_argument("--prefix", type=int, metavar="N", help="only the first N actions of each round")
    parser.add_argument("--interval", type=_positive, default=0.025, metavar="S", help="between two datagrams or commands")
    parser.add_argument("--without", action="append", default=[], metavar="KIND", help="leave out 'multipath', 'udp-open', ...")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for a shorter sequence of actions that fails")
    parser.add_argument("--keep-going", action="store_true", help="go on after a round that failed")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text; progress goes to standard error")
    given = parser.parse_args(arguments)
    modes: list[Any] = [None if mode == NO_VPN else mode for mode in given.vpn or MODES]
    settings = Settings(
        seed=random.SystemRandom().randrange(10**6) if given.seed is None else given.seed,
        seconds=given.minutes * 60,
        modes=tuple(modes),
        networks=(*NETWORKS, DRAWN) if ALL in (given.network or ()) else tuple(given.network or ()),
        round_seconds=given.round_seconds,
        only=given.round,
        prefix=given.prefix,
        interval=given.interval,
        without=frozenset(given.without),
        shrink=not given.no_shrink,
        keep_going=given.keep_going,
    )
    return settings, given.json


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


class Progress:
    """Shows the progress: one changing line on a terminal, one line per round elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("")
        self._round = ""

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        with self._status:
            yield

    def tell(self, text: str) -> None:
        if self._console.is_terminal:
            self._status.update(text)
        elif (title := text.partition(":")[0]) != self._round:
            self._round = title
            self.show(title)

    def show(self, text: str) -> None:
        """Print a text that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def again(settings: Settings, failed: Failed) -> str:
    """The command that repeats the failed round."""
    words = ["python -m tests.chaos", f"--seed {settings.seed}", f"--round {failed.number}"]
    words += [f"--vpn {mode or NO_VPN}" for mode in settings.modes] if len(settings.modes) < len(MODES) else []
    words += [f"--network {network}" for network in settings.networks]
    words += [f"--round-seconds {settings.round_seconds:g}"] if settings.round_seconds != 20.0 else []
    words += [f"--interval {settings.interval:g}"] if settings.interval != 0.025 else []
    words += [f"--without {kind}" for kind in sorted(settings.without)]
    words += [f"--prefix {failed.prefix}"] if failed.prefix is not None else []
    return " ".join(words)


def lines(settings: Settings, outcome: Outcome) -> Iterator[str]:
    """The outcome as text."""
    for failed in outcome.failed:
        yield f"{settings.title(failed.number)} failed:"
        yield from (f"  {text}" for text in failed.texts)
        enough = len(failed.actions) if failed.prefix is None else failed.prefix
        yield f"  after these {enough} of {len(failed.actions)} actions:"
        yield from (f"    {action}" for action in failed.actions[:enough])
        yield f"  again: {again(settings, failed)}"
    yield from outcome.lasting
    for kind, counts in outcome.by_kind.items():
        yield f"{kind}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items())
    for interface, kinds in outcome.packets.items():
        yield f"{interface}: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    lost = ", ".join(f"{count:,} {reason}" for reason, count in outcome.lost.items()) or "none"
    yield f"datagrams: {outcome.accepted:,} accepted, {outcome.sent:,} sent, {outcome.waiting:,} waiting, lost: {lost}"
    dropped, vanished = outcome.lost_on_device, outcome.vanished
    yield f"of those sent, {outcome.arrived:,} arrived, a device dropped {dropped:,}, {vanished:,} were given to none"
    yield "errors: " + (", ".join(f"{count:,} {name}" for name, count in sorted(outcome.errors.items())) or "none")
    if outcome.unseen:
        yield f"{outcome.unseen:,} packets were not seen: the tap could not keep up"
    verdict = "nothing failed" if outcome.held else f"{len(outcome.failed) or 'lasting'} failed"
    yield f"seed {settings.seed}, {outcome.rounds} rounds: {verdict}"


def document(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON."""
    return {
        "settings": dataclasses.asdict(settings) | {"without": sorted(settings.without)},
        "held": outcome.held,
        **dataclasses.asdict(outcome),
        "again": [again(settings, failed) for failed in outcome.failed],
    }


def main() -> int:
    settings, as_json = parse()
    console = Console(stderr=True)
    outcome = Outcome()
    status = OK
    try:
        enter_user_namespace()
        obstacle = available(vpn=settings.modes != (None,))
        if obstacle is not None:
            raise LabUnavailable(obstacle)
        console.print(f"seed {settings.seed}", highlight=False)
        progress = Progress(console)
        with progress.shown():
            run(settings, progress.tell, outcome, progress.show)
        status = OK if outcome.held else FAILED
    except LabUnavailable as unavailable:
        print(f"chaos: {unavailable}", file=sys.stderr)
        return UNAVAILABLE
    except KeyboardInterrupt:
        status = INTERRUPTED
    if as_json:
        print(json.dumps(document(settings, outcome), indent=2))
    else:
        for line in lines(settings, outcome):
            print(line)
    return status


if __name__ == "__main__":
    sys.exit(main())
