"""Whoever waits for changes: an iterator, a hold, a follower."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bindsock.model.change import Change
from bindsock.netmon.announcing import merged

if TYPE_CHECKING:
    from bindsock.netmon.watcher import Watcher


class Hold:
    """A block during which a watcher watches, whoever follows."""

    __slots__ = ("_watcher",)

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def __enter__(self) -> None:
        self._watcher.begin_hold()

    def __exit__(self, *_: object) -> None:
        self._watcher.end_hold()


class ChangeListener:
    """One merged change, for one reader that may be slow."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._change: Change | None = None
        self.ended: bool = False

    def put(self, change: Change) -> None:
        self._change = change if self._change is None else merged(self._change, change)
        if self._change is not None:
            self._wake()

    def take(self) -> Change | None:
        change, self._change = self._change, None
        return change

    def end(self) -> None:
        self.ended = True
        self._wake()
