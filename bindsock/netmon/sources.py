"""Opens, registers and closes the kernel's event sources, such as the netlink socket for events."""

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
    """The event sources of one watcher. They are closed when this object is freed.

    :param runtime: the event loop
    :param readable: called with each readable source, while the sources are registered
    """

    def __init__(self, runtime: Runtime, readable: Callable[[EventSource], object]) -> None:
        self.opened: bool = False
        """Whether the sources have been opened. A kernel may have none."""
        self.registered: bool = False
        """Whether the sources are registered with the event loop."""
        self.registering: bool = False
        """Whether the sources will be registered soon."""
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
        """Open the sources. Without any, changes are noticed only when the network is read again."""
        self.opened = True
        try:
            self._sources.extend(kernel.events())
        except OSError as error:
            _logger.warning("cannot open an event source, changes are noticed only once a minute: %s", error)
        for source in self._sources:
            self._poll.register(source.fileno(), select.POLLIN)

    def register(self) -> None:
        """Register the sources with the event loop."""
        self.registered = True
        for source in self._sources:
            self._runtime.add_reader(source.fileno(), self._readable, source)

    def unregister(self) -> None:
        """Remove the sources from the event loop. They stay open."""
        self.registered = False
        for source in self._sources:
            self._runtime.remove_reader(source.fileno())

    def pending(self) -> bool:
        """Whether events are pending; checked on every dial, so it must be fast."""
        return bool(self._poll.poll(0))

    def drop(self, source: EventSource) -> None:
        """Close a source that has failed."""
        self._runtime.remove_reader(source.fileno())
        self._poll.unregister(source.fileno())
        self._sources.remove(source)
        source.close()

    def close(self) -> None:
        """Close all sources."""
        self.unregister()
        for source in self._sources:
            self._poll.unregister(source.fileno())
        _close_all(self._sources)
        self._sources.clear()
        self.opened = False


def _close_all(sources: list[EventSource]) -> None:
    for source in sources:
        source.close()
