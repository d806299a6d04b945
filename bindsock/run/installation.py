"""Applies all patches, and removes them again."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from typing import TYPE_CHECKING, Any, Self

from bindsock.model.preferences import Preferences, preferences_or_default
from bindsock.options import known_keywords_only
from bindsock.run import environment, ledger
from bindsock.run.background import Background
from bindsock.run.ledger import Ledger
from bindsock.run.patching import AfterImport
from bindsock.run.policy import RunPolicy
from bindsock.run.table import PATCHES, UNCOVERED, Context

if TYPE_CHECKING:
    from types import ModuleType, TracebackType

    from bindsock.options import BetterPath


_logger = logging.getLogger("bindsock")

_installed: Installation | None = None


class Installation:
    """The result of :func:`install`. The end of a ``with`` block, or :meth:`uninstall`, removes the patches."""

    def __init__(self, policy: RunPolicy) -> None:
        self._policy = policy
        self._ledger = Ledger(policy.journal)
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self.uninstall()

    def report(self) -> list[dict[str, Any]]:
        """The outcomes of this process's connections: ``outcome``, ``what``, ``detail`` and ``count`` for each kind.

        The outcome is ``"bound"`` (``detail`` is the interface), ``"left alone"``, ``"refused"`` or ``"escaped"`` (``detail`` is
        the reason).
        """
        return ledger.document(self._ledger.entries())

    def uninstall(self) -> None:
        """Remove the patches. Existing event loops and connections stay as they are."""
        global _installed
        if _installed is self:
            _installed = None
        self._undo.close()

    def _apply(self) -> None:
        background = Background(self._policy, self._ledger)
        self._undo.callback(self._ledger.close)
        self._undo.callback(background.stop)
        context = Context(self._policy, self._ledger, background, self._undo)
        imports = AfterImport()
        imports.install(self._undo)
        for patch in PATCHES:
            imports.call(patch.module, functools.partial(patch.apply, context))
        for name, reason in UNCOVERED.items():
            imports.call(name, functools.partial(self._warn_uncovered, reason))
        if self._policy.proxy is not None:
            self._hide_proxy(self._policy.proxy)
        for name, value in environment.for_children(self._policy, os.environ).items():
            self._undo.callback(_set_variable, name, os.environ.get(name))
            os.environ[name] = value

    def _warn_uncovered(self, reason: str, module: ModuleType) -> None:
        self._ledger.note("escaped", module.__name__, f"imported, and {reason}")
        _logger.warning("%s is not covered by bindsock: %s", module.__name__, reason)

    def _hide_proxy(self, proxy: str) -> None:
        """Hide the proxy variables from this process's Python code, whose connections are bound. Child processes inherit them."""
        for name in environment.PROXY_VARIABLES:
            if os.environ.get(name) == proxy:
                del os.environ[name]
                os.putenv(name, proxy)
                self._undo.callback(_set_variable, name, proxy)


@known_keywords_only
def install(
    preferences: Preferences | None = None,
    *,
    interface: str | None = None,
    better_path: BetterPath = "auto",
) -> Installation:
    """Let new connections of this process's Python code leave by the effective interface, bypassing VPN tunnels.

    New event loops of asyncio and uvloop are bindsock's; blocking sockets are bound when they connect; trio runs get bindsock's
    socket factory; gRPC connects through a proxy in this process; c-ares is bound. Python processes that this process starts are
    covered, too. Existing event loops are not: see :func:`bindsock.adopt`.

    A socket that cannot be bound is closed, with one of the errors of :mod:`bindsock.errors`.

    :param preferences: how to choose among interfaces
    :param interface: the name of the only interface to use, without detection
    :param better_path: what to do with working streams when another interface becomes better
    :return: a context manager that removes the patches
    :raises RuntimeError: it is already installed
    :raises UnsupportedSystem: there is no kernel backend for this system
    """
    policy = RunPolicy(interface, preferences_or_default(preferences), better_path)
    return install_policy(policy)


def install_policy(policy: RunPolicy) -> Installation:
    """See :func:`install`."""
    global _installed
    if _installed is not None:
        raise RuntimeError("bindsock is already installed: uninstall it first")
    policy.factory()  # raises if there is no kernel backend
    installation = Installation(policy)
    try:
        installation._apply()
    except BaseException:
        installation._undo.close()
        raise
    _installed = installation
    return installation


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
