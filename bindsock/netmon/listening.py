"""Holds, which keep a watcher running, and listeners, which receive path changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bindsock.model.change import Change
from bindsock.netmon.announcing import merged

if TYPE_CHECKING:
    from bindsock.netmon.watcher import Watcher


class Hold:
    """A context manager during which a watcher runs, even without followers."""

    __slots__ = ("_watcher",)

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def __enter__(self) -> None:
        self._watcher.begin_hold()

    def __exit__(self, *_: object) -> None:
        self._watcher.end_hold()


class ChangeListener:
    """Holds one change, merged from several if the reader is slow.

    :param wake: called when there is something to take
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._change: Change | None = None
        self.ended: bool = False

    def put(self, change: Change) -> None:
        """Add a change, merged with the one that has not been taken yet."""
        self._change = change if self._change is None else merged(self._change, change)
        if self._change is not None:
            self._wake()

    def take(self) -> Change | None:
        """Take the change; ``None`` if there is none."""
        change, self._change = self._change, None
        return change

    def end(self) -> None:
        """There are no more changes: wake the reader."""
        self.ended = True
        self._wake()
