"""Makes calls that wait for the system in a thread, so that the event loop goes on meanwhile."""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bindsock.netmon.turns import CallbackBudget

if TYPE_CHECKING:
    from bindsock.netmon.runtime import Runtime


class Worker:
    """Makes the calls of one event loop, one after another. It is a :class:`bindsock.kernel.Background`.

    The thread starts with the first call, in the network namespace of the thread that requests it, and ends when there is nothing
    left to do. A process that exits does not wait for it, and the child of a fork does not have it.

    :param runtime: the event loop, in which the results are handed over
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._calls: deque[tuple[Callable[[], Any], Callable[[Any], object]]] = deque()
        self._changed = threading.Condition()
        self._busy = False

    @property
    def busy(self) -> bool:
        """Whether a call is being made."""
        return self._busy

    def submit(self, call: Callable[[], Any], done: Callable[[Any], object]) -> None:
        """Make a call after all earlier ones. Once the loop is closed it is made at once.

        :param done: called in the loop's thread with the result, or with the exception
        """
        if self._runtime.closed:
            self.join()
            done(_outcome(call))
            return
        with self._changed:
            self._calls.append((call, done))
            if self._busy:
                return
            self._busy = True
        try:
            # threading.Thread.start() would wait until the thread runs, on a busy machine for milliseconds.
            _thread.start_new_thread(self._run, ())
        except RuntimeError:  # the interpreter exits, or there are too many threads
            self._run()

    def in_turn(self, call: Callable[[], object]) -> None:
        """Make a call in the loop's thread, now or in a later iteration. Once the loop is closed it is made at once."""
        if self._runtime.closed:
            call()
        else:
            self._runtime.shared(CallbackBudget).do(call)

    def join(self) -> None:
        """Wait until all calls are made. Their results are still handed over by the loop."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._calls:
                    self._busy = False
                    self._changed.notify_all()
                    return
                call, done = self._calls.popleft()
            self._runtime.call_soon_threadsafe(done, _outcome(call))
            del call, done


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - handed over to the one who waits for the result
        return error
