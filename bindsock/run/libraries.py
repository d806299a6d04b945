"""Patches for libraries that connect in C or have their own event loop: trio, gRPC, c-ares."""

from __future__ import annotations

import functools
import importlib.util
import weakref
from typing import TYPE_CHECKING, Any

from bindsock.errors import BindFailed
from bindsock.run.patching import replace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import ModuleType

    from bindsock.integrations.grpc import ChannelOptions
    from bindsock.run.outcome import Outcome
    from bindsock.run.table import Context


def patch_trio(context: Context, module: ModuleType) -> None:
    """Give every trio run bindsock's socket factory. Without it, its sockets would be bound but not followed."""
    if importlib.util.find_spec("anyio") is None:
        return
    from bindsock.run.trio_sockets import install_in_run

    def in_run(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(function)
        async def main(*args: Any) -> Any:
            install_in_run(context.policy, context.ledger)
            return await function(*args)

        return main

    for owner, name in ((module, "run"), (module.lowlevel, "start_guest_run")):
        replace(context.undo, owner, name, _with_first_argument(getattr(owner, name), in_run))


def _with_first_argument(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def changed(first: Any, *args: Any, **options: Any) -> Any:
        return function(change(first), *args, **options)

    return changed


def patch_grpc(context: Context, module: ModuleType) -> None:
    """Let gRPC's channels, synchronous and asynchronous, connect through a proxy in this process."""
    import grpc._channel  # type: ignore[import-untyped]
    import grpc.aio._channel  # type: ignore[import-untyped]

    from bindsock.integrations.grpc import is_redirected, redirect

    def leading(initialise: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(initialise)
        def __init__(self: Any, target: str, options: Any, *args: Any, **keywords: Any) -> None:
            given: ChannelOptions = list(options or ())
            if not is_redirected(given):
                try:
                    target, given = redirect(target, given, context.background.grpc_endpoint)
                except ValueError as error:
                    context.ledger.note("refused", "gRPC", str(error))
                    raise BindFailed(f"the channel to {target} cannot be bound: {error}", call="grpc.Channel") from error
            initialise(self, target, given, *args, **keywords)

        return __init__

    for owner in (grpc._channel.Channel, grpc.aio._channel.Channel):
        replace(context.undo, owner, "__init__", leading(owner.__init__))


_QUESTIONS = ("query", "search", "getaddrinfo", "gethostbyname", "gethostbyaddr", "getnameinfo")
"""The methods of a channel that ask a name server. pycares 5 has no gethostbyname."""


def patch_pycares(context: Context, module: ModuleType) -> None:
    """Bind c-ares to the interface of its name servers before each query, since it keeps the device and address of the last
    one."""
    from bindsock.resolvers.c_ares import bind_channel

    initialise = module.Channel.__init__

    own_choices: weakref.WeakKeyDictionary[Any, tuple[Outcome, str]] = weakref.WeakKeyDictionary()

    @functools.wraps(initialise)
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        initialise(self, *args, **options)
        device, address = options.get("local_dev"), options.get("local_ip")
        if device and address:
            own_choices[self] = ("bound", device)
        elif device or address:
            own_choices[self] = (
                "escaped",
                "c-ares does not bind if it was given only a device or only an address",
            )

    def bound(ask: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(ask)
        def asked(self: Any, *args: Any, **options: Any) -> Any:
            if self in own_choices:
                outcome, detail = own_choices[self]
                context.ledger.note(outcome, "c-ares", detail)
                return ask(self, *args, **options)
            with context.ledger.refusals("c-ares"):
                device = bind_channel(context.policy.factory(), self)  # made in this thread: threads must not share a kernel
            if device is None:
                context.ledger.note("left alone", "c-ares", "a name server on this machine")
            else:
                context.ledger.note("bound", "c-ares", device)
            return ask(self, *args, **options)

        return asked

    replace(context.undo, module.Channel, "__init__", __init__)
    for name in _QUESTIONS:
        if name in vars(module.Channel):
            replace(context.undo, module.Channel, name, bound(getattr(module.Channel, name)))
