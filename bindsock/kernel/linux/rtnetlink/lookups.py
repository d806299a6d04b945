"""The answers about destinations, each asked for once and kept until an event makes it old.

Nothing here refers to the kernel's backend, so that one that is forgotten closes its sockets at once.
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
"""About so many destinations a reading asks anew, in 1 to 2 ms; about more they are asked when they are decided next."""
_logger = logging.getLogger("bindsock")


class AnswerCache:
    """Answers out of memory where there is one, else the kernel's.

    It never takes an answer back: where one has become old, another object takes its place. So whoever has decided by this one
    can tell that it must decide anew.

    :param ask: asks the kernel; never raises
    :param keeps: whether an answer may be kept, because events would make it old
    """

    def __init__(
        self, ask: Callable[[IPAddress], Answers], keeps: Callable[[], bool], known: dict[IPAddress, Answers] | None = None
    ) -> None:
        self._ask = ask
        self._keeps = keeps
        self.known: dict[IPAddress, Answers] = known if known is not None else {}
        """By destination, the oldest first."""
        self._forgot = False
        """Whether something was answered that is not known any more: then any event may concern it."""
        self._heads: dict[tuple[int, int], set[int]] = {}
        """By version and prefix length the prefixes of what is known, as far as anybody has asked for them."""

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
        """Whether what is known may lie within a prefix.

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
        """The known destinations that lie within one of the prefixes, each as for :meth:`concerns`; all if some are forgotten."""
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
        """Another one, which knows this."""
        return AnswerCache(self._ask, self._keeps, known)


class AnswersOrDefaults:
    """Answers always: with the default routes of the last reading where the kernel cannot be asked."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._complained = False

    def __call__(self, destination: IPAddress) -> Answers:
        try:
            return self._reader.answers(destination)
        except OSError as error:
            if not self._complained:
                self._complained = True
                _logger.warning("the kernel cannot be asked for routes, the default routes stand for them: %s", error)
            return self._of_defaults(destination)

    def _of_defaults(self, destination: IPAddress) -> Answers:
        network, family = self._reader.last, family_of(unmapped(destination))
        if network is None:
            return Answers()
        defaults = {index: lookup for (index, of), lookup in network.defaults.items() if of == family and lookup.usable}
        return Answers(network.unbound.get(family), defaults)


class CurrentAnswers:
    """What has been asked, kept up to date."""

    def __init__(self, ask: Callable[[IPAddress], Answers], keeps: Callable[[], bool]) -> None:
        self._ask = ask
        self.cache: AnswerCache = AnswerCache(ask, keeps)
        """The answers that are right now."""
        self._guessed = False
        """Whether answers were changed without asking."""

    def concerns(self, version: int, length: int, head: int) -> bool:
        """Whether what is known may lie within a prefix. See :meth:`AnswerCache.concerns`."""
        return self.cache.concerns(version, length, head)

    def forget(self) -> None:
        """What was asked while nobody listened may be old."""
        self.cache = self.cache.replaced({})

    def take_down(self, down: frozenset[int]) -> None:
        """Interfaces have gone down. What follows is guessed for now."""
        self.cache = self.cache.replaced({d: answers_without(a, down) for d, a in self.cache.known.items()})
        self._guessed = True

    def renew(self, everything: bool, prefixes: set[tuple[int, int, int]]) -> None:
        """Ask anew about the destinations whose answers may be old. All stays as it was where nothing comes of it.

        :param prefixes: what events were about, each as for :meth:`AnswerCache.concerns`
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
