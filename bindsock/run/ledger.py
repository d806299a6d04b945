"""Counts the outcomes of a program's connections: bound to an interface, left alone, refused, or escaped, and why."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsock.errors import BindsockError
from bindsock.run.outcome import Outcome, outcome_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Entry:
    """The outcome of a connection.

    ``what`` names the kind of connection. ``detail`` is the interface if the outcome is ``"bound"``, else the reason.
    """

    outcome: Outcome
    what: str
    detail: str


class Ledger:
    """Counts the entries of this process. It can be used from any thread, and in a forked child.

    :param journal: a file to which each entry is appended as a line of JSON; several processes can share it
    """

    def __init__(self, journal: str | None = None) -> None:
        self._start_counting()
        # Lines of several processes do not mix (POSIX write(), O_APPEND).
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND) if journal is not None else None

    def note(self, outcome: Outcome, what: str, detail: str) -> None:
        """Count an entry."""
        if os.getpid() != self._process:
            # A forked child does not count its parent's connections, and its copy of the lock may be held.
            self._start_counting()
        entry = Entry(outcome, what, detail)
        with self._lock:
            self._entries[entry] += 1
            if self._journal is not None:
                os.write(self._journal, f"{json.dumps(asdict(entry))}\n".encode())

    def note_outcome(self, what: str, sock: socket.socket) -> None:
        """Count the outcome of a socket that has an address."""
        outcome, detail = outcome_of(sock)
        self.note(outcome, what, detail)

    @contextlib.contextmanager
    def refusals(self, what: str) -> Iterator[None]:
        """Count a refusal if the block raises an error of bindsock."""
        try:
            yield
        except BindsockError as error:
            self.note("refused", what, type(error).__name__)
            raise

    def entries(self) -> Counter[Entry]:
        """The entries so far, with their counts."""
        with self._lock:
            return Counter(self._entries)

    def close(self) -> None:
        """Write no more to the journal."""
        with self._lock:
            journal, self._journal = self._journal, None
        if journal is not None:
            os.close(journal)

    def _start_counting(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._entries: Counter[Entry] = Counter()


def read_journal(path: str | Path) -> Counter[Entry]:
    """The entries of all processes that wrote to a journal."""
    return Counter(Entry(**json.loads(line)) for line in Path(path).read_text().splitlines())


def document(entries: Mapping[Entry, int]) -> list[dict[str, Any]]:
    """The entries as JSON, the largest counts first. Scripts rely on these names."""
    return [{**asdict(entry), "count": count} for entry, count in _ordered(entries)]


def lines(entries: Mapping[Entry, int]) -> list[str]:
    """The entries as text for people."""
    if not entries:
        return ["no covered Python program has made a connection"]
    return [_line(entry, count) for entry, count in _ordered(entries)]


def _ordered(entries: Mapping[Entry, int]) -> list[tuple[Entry, int]]:
    outcomes: tuple[Outcome, ...] = ("bound", "left alone", "refused", "escaped")
    return sorted(entries.items(), key=lambda item: (outcomes.index(item[0].outcome), -item[1], item[0].what, item[0].detail))


def _line(entry: Entry, count: int) -> str:
    if entry.outcome == "bound":
        return f"{count} by {entry.detail} ({entry.what})"
    return f"{count} {entry.outcome} ({entry.what}): {entry.detail}"
