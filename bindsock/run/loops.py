"""Patches that make new event loops of asyncio and uvloop the ones of :func:`bindsock.loop_factory`.

No event loop policy is set. Instead the classes are replaced in the modules of asyncio and uvloop. This covers ``asyncio.run()``,
``asyncio.Runner``, ``asyncio.new_event_loop()``, ``uvloop.run()``, ``uvloop.install()``, and libraries that call these: uvicorn,
aiohttp.web, pytest-asyncio, IPython.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

from bindsock.default import interface_of
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.eventloop import BoundLoop, loop_factory
from bindsock.model.network import FAMILIES
from bindsock.run.patching import replace

if TYPE_CHECKING:
    import socket
    from types import ModuleType

    from bindsock.run.ledger import Ledger
    from bindsock.run.policy import RunPolicy
    from bindsock.run.table import Context

_PLAIN = asyncio.SelectorEventLoop


def patch_asyncio(context: Context, module: ModuleType) -> None:
    """Make new event loops of asyncio bindsock's."""
    # Loops of bindsock's own class, and the functions of the module, must use the same policy.
    replace(context.undo, BoundLoop, "_make_factory", staticmethod(context.policy.factory))
    plain = module.SelectorEventLoop
    bound = bound_class(plain, context.policy, context.ledger)
    for place in (module, module.unix_events):
        for name in [name for name, value in vars(place).items() if value is plain]:
            replace(context.undo, place, name, bound)
    # The default policy keeps the class (Lib/asyncio/unix_events.py, _loop_factory).
    for value in list(vars(module.unix_events).values()):
        if isinstance(value, type) and vars(value).get("_loop_factory") is plain:
            replace(context.undo, value, "_loop_factory", bound)


def patch_uvloop(context: Context, module: ModuleType) -> None:
    """Make new event loops of uvloop bindsock's."""
    replace(context.undo, module, "Loop", bound_class(module.Loop, context.policy, context.ledger))


def background_loop(policy: RunPolicy, ledger: Ledger) -> BoundLoop:
    """A loop for gRPC's connections."""
    loop = bound_class(_PLAIN, policy, ledger, "gRPC")()
    assert isinstance(loop, BoundLoop)
    return loop


def bound_class(
    base: type[asyncio.AbstractEventLoop], policy: RunPolicy, ledger: Ledger, what: str = "event loops"
) -> type[BoundLoop]:
    """The loop class that replaces another one.

    :param what: the name of its connections in the ledger
    """
    bound = loop_factory(base, policy.preferences, interface=policy.interface, better_path=policy.better_path)
    return type(bound.__name__, (_CountingLoop, bound), {"_ledger": ledger, "_what": what})


if TYPE_CHECKING:
    _Base = BoundLoop
else:
    _Base = object


class _CountingLoop(_Base):
    """Counts the outcomes of a loop's connections."""

    _ledger: Ledger
    _what: str

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._counted: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        sock = options.get("sock")
        if sock is None or not self._connector.is_attaching(sock):
            with self._ledger.refusals(self._what):
                return await super().create_connection(*args, **options)
        # All connections that the factory has dialled pass here.
        made = await super().create_connection(*args, **options)
        if isinstance(sock, FollowedSocket):
            self._ledger.note_outcome(self._what, sock)
        return made

    async def create_datagram_endpoint(self, *args: Any, **options: Any) -> Any:
        with self._ledger.refusals(self._what):
            made = await super().create_datagram_endpoint(*args, **options)
        name = interface_of(made[0])
        if name is not None:
            self._ledger.note("bound", self._what, name)
        return made

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        with self._ledger.refusals(self._what):
            await super().sock_connect(sock, address)
        if sock.family in FAMILIES and not isinstance(sock, FollowedSocket) and not self._connector.is_attaching(sock):
            self._counted.add(sock)
            self._ledger.note_outcome(self._what, sock)

    async def sock_sendto(self, sock: socket.socket, data: Any, address: Any) -> int:
        with self._ledger.refusals(self._what):
            sent: int = await super().sock_sendto(sock, data, address)
        if sock not in self._counted:
            self._counted.add(sock)
            name = interface_of(sock)
            if name is not None:
                self._ledger.note("bound", self._what, name)
        return sent
