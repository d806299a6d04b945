"""The errors. Few, flat, named for what the caller can do; all are OSErrors, since that is what network code catches."""

from __future__ import annotations

import errno as _errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.model.decision import Decision


class BindsockError(OSError):
    """The base of bindsock's own errors.

    :ivar interface: the name of the interface concerned, if one is
    :ivar call: the system call or the step that failed, if one did
    """

    default_errno: int = _errno.EIO

    def __init__(self, message: str, *, errno: int | None = None, interface: str | None = None, call: str | None = None) -> None:
        code = self.default_errno if errno is None else errno
        super().__init__(code, message)
        self.message = message
        self.interface = interface
        self.call = call

    def __str__(self) -> str:
        detail = ", ".join(
            part
            for part in (
                f"interface {self.interface}" if self.interface else "",
                f"call {self.call}" if self.call else "",
                f"errno {self.errno} {os.strerror(self.errno)}" if self.errno else "",
            )
            if part
        )
        return f"{self.message} ({detail})" if detail else self.message


class NoEffectiveInterface(BindsockError):
    """No interface may be used for the target. The network is away, or only the VPN is there.

    :ivar decisions: what was looked at, and why each was refused
    """

    default_errno: int = _errno.ENETUNREACH

    def __init__(self, message: str, *, decisions: tuple[Decision, ...] = (), errno: int | None = None) -> None:
        super().__init__(message, errno=errno)
        self.decisions = decisions


class BindFailed(BindsockError):
    """The socket could not be bound to the interface. It has been closed: it never sends unbound."""

    default_errno: int = _errno.ENODEV


class NoRoute(BindsockError):
    """The interface has no real route to the destination, so a packet bound to it would go nowhere. The message names a cure."""

    default_errno: int = _errno.ENETUNREACH


class FirewallBlocked(BindsockError, PermissionError):
    """A firewall forbids the connection or the datagram: this host's own, or one on the way that says so.

    The message says which, as far as the system tells.
    """

    default_errno: int = _errno.EPERM


class NoAnswer(BindsockError, TimeoutError):
    """The address did not answer within ``connect_timeout``. The message says what could be seen."""

    default_errno: int = _errno.ETIMEDOUT


class EgressMismatch(BindsockError):
    """The connection's local address belongs to a tunnel although the socket is bound beneath it."""

    default_errno: int = _errno.EADDRNOTAVAIL


class InterfaceChanged(BindsockError, ConnectionError):
    """The connection ended because its interface or its local address is gone, or because a better path was taken.

    :ivar new_interface: the interface that took over, if one did
    """

    default_errno: int = _errno.ENETDOWN

    def __init__(
        self,
        message: str,
        *,
        errno: int | None = None,
        interface: str | None = None,
        call: str | None = None,
        new_interface: str | None = None,
    ) -> None:
        super().__init__(message, errno=errno, interface=interface, call=call)
        self.new_interface = new_interface


class KernelError(BindsockError):
    """The operating system answered what cannot be understood, or did not answer.

    A truncated or hostile netlink or routing message raises this and nothing else.
    """

    default_errno: int = _errno.EPROTO


class UnsupportedSystem(BindsockError):
    """bindsock has no kernel backend for this system."""

    default_errno: int = _errno.ENOTSUP
