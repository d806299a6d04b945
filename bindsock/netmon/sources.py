"""A kernel's event sources: open for as long as there is a watcher, registered with the event loop while it watches."""

from __future__ import annotations

import logging
import select
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.kernel import EventSource, Kernel
    from bindsock.netmon.runtime import Runtime

_logger = logging.getLogger("bindsock")


class EventSources:
    """The event sources of one watcher. They are closed when they are forgotten.

    :param runtime: the event loop
    :param readable: called with each source that has something to read, while they are registered
    """

    def __init__(self, runtime: Runtime, readable: Callable[[EventSource], object]) -> None:
        self.opened: bool = False
        """Whether they are open, as far as the kernel has any."""
        self.registered: bool = False
        """Whether the event loop watches them."""
        self._runtime = runtime
        self._readable = readable
        self._sources: list[EventSource] = []
        self._poll = select.poll()
        self._finalizer = weakref.finalize(self, _close_all, self._sources)
        self._finalizer.atexit = False

    def __iter__(self) -> Iterator[EventSource]:
        return iter(list(self._sources))

    def __contains__(self, source: object) -> bool:
        return source in self._sources

    def __bool__(self) -> bool:
        return bool(self._sources)

    def open(self, kernel: Kernel) -> None:
        """Open them. Without any, changes are seen only when the network is read again."""
        self.opened = True
        try:
            self._sources.extend(kernel.events())
        except OSError as error:
            _logger.warning("no event source can be opened; changes are seen every minute only: %s", error)
        for source in self._sources:
            self._poll.register(source.fileno(), select.POLLIN)

    def register(self) -> None:
        """Have the event loop watch them."""
        self.registered = True
        for source in self._sources:
            self._runtime.add_reader(source.fileno(), self._readable, source)

    def unregister(self) -> None:
        """Have the event loop leave them alone. They stay open."""
        self.registered = False
        for source in self._sources:
            self._runtime.remove_reader(source.fileno())

    def pending(self) -> bool:
        """Whether events are pending. It is checked at each dial, so it must not raise, which is slow."""
        return bool(self._poll.poll(0))

    def drop(self, source: EventSource) -> None:
        """Close one that has failed."""
        self._runtime.remove_reader(source.fileno())
        self._poll.unregister(source.fileno())
        self._sources.remove(source)
        source.close()

    def close(self) -> None:
        """Close them all."""
        self.unregister()
        for source in self._sources:
            self._poll.unregister(source.fileno())
        _close_all(self._sources)
        self._sources.clear()
        self.opened = False


def _close_all(sources: list[EventSource]) -> None:
    for source in sources:
        source.close()
