"""Dials the new connection of a replacement, with its handshake, until it is ready."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bindsock.dial.dialer import PathChanged
from bindsock.netmon.backoff import Backoff
from bindsock.reconnect.connection import Attach, Connection, ConnectionOwner, Dial, Dialled
from bindsock.stream.guard import StreamGuard, follow_stream
from bindsock.stream.plan import Requirement

if TYPE_CHECKING:
    from bindsock.model.network import IPAddress
    from bindsock.netmon.loop import Future, Timer
    from bindsock.netmon.runtime import Runtime
    from bindsock.netmon.watcher import Watcher
    from bindsock.options import ConnectOptions
    from bindsock.reconnect.hooks import Hook

_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
"""Seconds between a dial that failed and the next."""
MAX_CONCURRENT_REDIALS = 32
"""How many connections of one event loop are dialled anew at the same time."""


@dataclass(frozen=True, slots=True)
class Replacing:
    """How connections are replaced."""

    dial: Dial
    attach: Attach
    hook: Hook
    options: ConnectOptions
    """Those of the connection. With ``better_path="keep"`` one that works stays; otherwise it goes where a new one would."""

    @property
    def handshake(self) -> bool:
        """Whether ``attach`` waits for the peer, as TLS does: then the path is watched meanwhile."""
        return bool(self.options.ssl)

    def requirement(self, address: IPAddress, *, replaceable: bool) -> Requirement:
        """What is required of one of the connections.

        :param replaceable: ``False`` while it is not ready: then it is ended if its path goes away
        """
        options = self.options
        better_path = (options.better_path or "auto") if replaceable else "keep"
        return Requirement(address, options.interface, better_path, options.dead_after, replaceable)


class ConnectingUser(ConnectionOwner, Protocol):
    """Who wants the new connections, and owns them."""

    def connected(self, connection: Connection) -> Coroutine[Any, Any, None] | None:
        """A new connection is ready.

        :return: what to go on with in the same task, without another turn of the loop in between
        """

    def dial_failed(self) -> None:
        """There is no new connection; ``last_error`` says why."""

    def dial_again(self) -> None:
        """The pause is over."""


class RedialSlots:
    """Limits how many connections of one event loop are dialled anew at the same time. The one that waits longest is next.

    asyncio's semaphore would hold the loop.

    :param runtime: the event loop, whose shared object this is
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._free = MAX_CONCURRENT_REDIALS
        self._waiting: deque[Future] = deque()
        self._given: set[Future] = set()

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn = self._runtime.create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn in self._given:
                self._given.remove(turn)
                self._release()
            raise
        self._given.remove(turn)

    async def __aexit__(self, *exc: object) -> None:
        self._release()

    def _release(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its task was cancelled
                self._given.add(turn)
                turn.set_result(None)
                return
        self._free += 1


class Connecting:
    """Dials in a task of its own, with a pause after each failure."""

    def __init__(self, watcher: Watcher, loop: asyncio.AbstractEventLoop, how: Replacing, user: ConnectingUser) -> None:
        self.last_error: BaseException | None = None
        """Why the last new connection could not be made, or did not last."""
        self._watcher = watcher
        self._loop = loop
        self._how = how
        self._user = user
        self._task: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._failing = False
        self._backoff = Backoff(_FIRST_PAUSE, _LAST_PAUSE, random=watcher.runtime.random)

    async def connect(self) -> Connection:
        """Dial until the handshake is done. A path that goes away meanwhile does not count as a failure.

        :raises OSError: the dial or the handshake failed
        """
        return await self._how.dial(self._attach)

    async def _attach(self, dialled: Dialled) -> Connection:
        """Do the handshake.

        :raises PathChanged: it failed because the path went away meanwhile
        """
        how = self._how
        connection = Connection(self._user, dialled)
        guard = self._guard(connection) if how.handshake else None
        try:
            connection.transport = await how.attach(connection, connection.sock)
            if connection.ended:
                raise connection.error or ConnectionResetError(errno.ECONNRESET, "the connection ended as soon as it was made")
        except OSError as error:
            if guard is None or guard.error is None:
                raise
            raise PathChanged(error) from error
        else:
            return connection
        finally:
            if guard is not None:
                guard.close()

    def dial(self, address: IPAddress) -> None:
        """Begin to dial.

        :param address: the peer's so far, for the name of the task
        """
        self._task = start_task(self._loop, self._dial(), f"bindsock dial {address}")

    def failed(self, error: BaseException | None) -> None:
        """A new connection failed, so the next dial comes after a pause.

        :param error: why, if that is known
        """
        self._failing = True
        self.last_error = error or self.last_error

    def pause(self) -> None:
        """Ask for the next dial: at once if nothing has failed, else after a pause that grows with each failure."""
        self._timer = self._watcher.runtime.call_later(self._backoff.next() if self._failing else 0.0, self._again)

    def hurry(self) -> None:
        """End the pause, if there is one."""
        if self._timer is not None:
            self._again()

    def stop(self) -> None:
        """Forget the dial, or the pause, that is under way, and what has failed."""
        self._stop_timer()
        self._failing = False
        self._backoff.reset()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def succeeded(self) -> None:
        """The new connection is the current one now."""
        self.stop()
        self.last_error = None

    def _again(self) -> None:
        self._stop_timer()
        self._user.dial_again()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    async def _dial(self) -> None:
        task = asyncio.current_task()
        try:
            async with self._watcher.runtime.shared(RedialSlots):
                connection = await self.connect()
        except asyncio.CancelledError as error:
            # If stop() did not cancel it, a program did that cancels all tasks.
            failure: BaseException = error
            if self._task is not task:
                raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the cause that the program is told in the end
            failure = error
        else:
            if self._task is not task:
                connection.drop(self._watcher.kernel, "reset", self._watcher.runtime)
                return
            self._task = None
            go_on = self._user.connected(connection)
            if go_on is not None:
                await go_on
            return
        if self._task is task:
            self._task = None
            self.failed(failure)
            self._user.dial_failed()

    def _guard(self, connection: Connection) -> StreamGuard:
        """Ends the connection, and with it the handshake, when its path goes away."""
        dialled = connection.dialled
        requirement = self._how.requirement(dialled.address, replaceable=False)
        return follow_stream(self._watcher, connection.sock, requirement, dialled.path)


def start_task(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task that begins in a later turn of the loop, when the caller has stored it.

    ``loop.create_task()`` runs the coroutine at once where the program has set ``asyncio.eager_task_factory``.
    """
    return asyncio.Task(coroutine, loop=loop, name=name)
