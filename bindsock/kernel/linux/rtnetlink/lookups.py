"""A cache of route lookups: each destination is looked up once, and again after an event that may change the answer.

Nothing here refers to the backend object, so a backend that is no longer used is collected and closes its sockets at once.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bindsock.model.network import ADDRESS_BITS, Answers, answers_without, family_of, unmapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bindsock.kernel.linux.rtnetlink.reader import Reader
    from bindsock.model.network import IPAddress

_KEPT = 4096
_ASKED_AT_ONCE = 24
"""A reading looks up at most this many destinations again, in 1 to 2 ms. If there are more, each is looked up when it is next
needed."""
_logger = logging.getLogger("bindsock")


class AnswerCache:
    """The answers by destination: cached ones, else the kernel's.

    A cached answer never changes: when one is out of date, a new object replaces this one. A decision that was made with another
    object must be made again.

    :param ask: looks up a destination in the kernel; never raises
    :param keeps: whether answers may be cached, because events will tell when they are out of date
    """

    def __init__(
        self, ask: Callable[[IPAddress], Answers], keeps: Callable[[], bool], known: dict[IPAddress, Answers] | None = None
    ) -> None:
        self._ask = ask
        self._keeps = keeps
        self.known: dict[IPAddress, Answers] = known if known is not None else {}
        """The cached answers by destination, the oldest first."""
        self._forgot = False
        """Whether an answer has been dropped from the cache: then any event may concern it."""
        self._heads: dict[tuple[int, int], set[int]] = {}
        """The prefixes of the known destinations, by version and prefix length; filled when first asked for."""

    def __call__(self, destination: IPAddress) -> Answers:
        answers = self.known.get(destination)
        if answers is None:
            answers = self._ask(destination)
            if self._keeps():
                if len(self.known) >= _KEPT:
                    for oldest in list(self.known)[: _KEPT // 2]:
                        del self.known[oldest]
                    self._heads.clear()
                    self._forgot = True
                self.known[destination] = answers
                for (version, length), heads in self._heads.items():
                    if version == destination.version:
                        heads.add(int(destination) >> (ADDRESS_BITS[version] - length))
        return answers

    def concerns(self, version: int, length: int, head: int) -> bool:
        """Whether a destination that was looked up may lie within a prefix.

        :param version: the IP version, 4 or 6
        :param length: the prefix length
        :param head: the first ``length`` bits of the prefix, as a number
        """
        if self._forgot:
            return True
        heads = self._heads.get((version, length))
        if heads is None:
            shift = ADDRESS_BITS[version] - length
            heads = {int(destination) >> shift for destination in self.known if destination.version == version}
            self._heads[version, length] = heads
        return head in heads

    def within(self, prefixes: Iterable[tuple[int, int, int]]) -> list[IPAddress]:
        """The known destinations within any of the prefixes; all if answers have been dropped.

        :param prefixes: version, length and head, as for :meth:`concerns`
        """
        if self._forgot:
            return list(self.known)
        wanted: dict[tuple[int, int], set[int]] = {}
        for version, length, head in prefixes:
            wanted.setdefault((version, length), set()).add(head)
        return [
            destination
            for destination in self.known
            if any(
                destination.version == version and int(destination) >> (ADDRESS_BITS[version] - length) in heads
                for (version, length), heads in wanted.items()
            )
        ]

    def replaced(self, known: dict[IPAddress, Answers]) -> AnswerCache:
        """A new cache with these answers."""
        return AnswerCache(self._ask, self._keeps, known)


class AnswersOrDefaults:
    """Looks up destinations in the kernel; if the kernel refuses, answers with the default routes of the last reading."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._complained = False

    def __call__(self, destination: IPAddress) -> Answers:
        try:
            return self._reader.answers(destination)
        except OSError as error:
            if not self._complained:
                self._complained = True
                _logger.warning("cannot ask the kernel for routes, using the default routes instead: %s", error)
            return self._of_defaults(destination)

    def _of_defaults(self, destination: IPAddress) -> Answers:
        network, family = self._reader.last, family_of(unmapped(destination))
        if network is None:
            return Answers()
        defaults = {index: lookup for (index, of), lookup in network.defaults.items() if of == family and lookup.usable}
        return Answers(network.unbound.get(family), defaults)


class CurrentAnswers:
    """Holds the cache that is up to date."""

    def __init__(self, ask: Callable[[IPAddress], Answers], keeps: Callable[[], bool]) -> None:
        self._ask = ask
        self.cache: AnswerCache = AnswerCache(ask, keeps)
        """The answers that hold now."""
        self._guessed = False
        """Whether answers were changed without asking the kernel."""

    def concerns(self, version: int, length: int, head: int) -> bool:
        """Whether a destination that was looked up may lie within a prefix. See :meth:`AnswerCache.concerns`."""
        return self.cache.concerns(version, length, head)

    def forget(self) -> None:
        """Drop all answers: they may be out of date, since they were made without an event source."""
        self.cache = self.cache.replaced({})

    def take_down(self, down: frozenset[int]) -> None:
        """Remove interfaces that went down from the answers, without asking the kernel. :meth:`renew` asks later."""
        self.cache = self.cache.replaced({d: answers_without(a, down) for d, a in self.cache.known.items()})
        self._guessed = True

    def renew(self, everything: bool, prefixes: set[tuple[int, int, int]]) -> None:
        """Look up again the destinations whose answers may be out of date. If no answer changes, the cache stays the same object.

        :param everything: whether all answers may be out of date
        :param prefixes: the prefixes that events were about, as for :meth:`AnswerCache.concerns`
        """
        known = self.cache.known
        everything |= self._guessed
        self._guessed = False
        old = list(known) if everything else self.cache.within(prefixes) if prefixes else []
        if len(old) > _ASKED_AT_ONCE:
            gone = set(old)
            self.cache = self.cache.replaced({d: answers for d, answers in known.items() if d not in gone})
        elif old:
            fresh = {destination: self._ask(destination) for destination in old}
            if any(known[destination] != answers for destination, answers in fresh.items()):
                self.cache = self.cache.replaced({**known, **fresh})
