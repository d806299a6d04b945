"""Orders to the multipath path managers that take several commands, for each of which the kernel may take long."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from bindsock.kernel import Background

_logger = logging.getLogger("bindsock")
T = TypeVar("T")

Operation: TypeAlias = "Generator[Callable[[], Any], Any, T]"
"""A generator that yields each command and gets its result, or its exception."""


class Operations:
    """Carries out operations, one after another: their commands in the background, everything else in the caller's thread."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Operation[None], Background | None]] = deque()
        """The first of them is being carried out."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def perform(self, operation: Operation[None], background: Background | None) -> None:
        """Carry out an operation after those that were begun before.

        :param background: makes the commands; without it they are made at once
        """
        self._waiting.append((operation, background))
        if len(self._waiting) == 1:
            self._advance(None)

    def give_up(self) -> None:
        """Forget all operations. Results that are still to come are ignored."""
        waiting, self._waiting = self._waiting, deque()
        for operation, _ in waiting:
            operation.close()

    def _resume(self, operation: Operation[None], outcome: Any) -> None:
        if self._waiting and self._waiting[0][0] is operation:
            self._advance(outcome)

    def _advance(self, outcome: Any) -> None:
        """Go on with the first operation until it waits for the background, and then, in a turn of its own, with the next one.

        :param outcome: the result of its last command, or the exception
        """
        while self._waiting:
            operation, background = self._waiting[0]
            command = None
            try:
                command = operation.throw(outcome) if isinstance(outcome, Exception) else operation.send(outcome)
            except StopIteration:
                pass
            except Exception:
                _logger.exception("an order for multipath subflows failed; the next ones are not affected")
            if command is None:
                outcome = None
                self._waiting.popleft()
                if self._waiting and background is not None:
                    following, _ = self._waiting[0]
                    background.in_turn(functools.partial(self._resume, following, None))
                    return
            elif background is not None:
                background.submit(command, functools.partial(self._resume, operation))
                return
            else:
                try:
                    outcome = command()
                except Exception as error:  # noqa: BLE001 - for the operation
                    outcome = error
