"""The errors that bindsock raises. All of them are subclasses of :class:`OSError`, which network code catches already."""

from __future__ import annotations

import errno as _errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.model.decision import Decision


class BindsockError(OSError):
    """The base class of bindsock's errors.

    :ivar interface: the name of the interface concerned, if there is one
    :ivar call: the system call or the step that failed, if there is one
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
    """No interface may be used for the target: the network is down, or only the VPN is left.

    :ivar decisions: the decisions, with the reason for which each interface was refused
    """

    default_errno: int = _errno.ENETUNREACH

    def __init__(self, message: str, *, decisions: tuple[Decision, ...] = (), errno: int | None = None) -> None:
        super().__init__(message, errno=errno)
        self.decisions = decisions


class BindFailed(BindsockError):
    """The socket could not be bound to the interface. It has been closed, so that it cannot send unbound."""

    default_errno: int = _errno.ENODEV


class NoRoute(BindsockError):
    """The interface has no route to the destination. The message suggests a command that adds one."""

    default_errno: int = _errno.ENETUNREACH


class FirewallBlocked(BindsockError, PermissionError):
    """A firewall rejected the connection or the datagram: one on this host, or one on the path that sent an ICMP error.

    The message says which, as far as the system reports it.
    """

    default_errno: int = _errno.EPERM


class NoAnswer(BindsockError, TimeoutError):
    """The address did not answer within ``connect_timeout``. The message reports what is known about the cause."""

    default_errno: int = _errno.ETIMEDOUT


class EgressMismatch(BindsockError):
    """The connection has the local address of a tunnel, although its socket is bound to another interface."""

    default_errno: int = _errno.EADDRNOTAVAIL


class InterfaceChanged(BindsockError, ConnectionError):
    """The connection was ended because its interface or its local address is gone, or because a better path exists.

    :ivar new_interface: the name of the interface that replaces the old one, if there is one
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
    """The kernel sent an answer that bindsock cannot parse, or did not answer.

    A truncated or malformed netlink or routing socket message raises this error and no other.
    """

    default_errno: int = _errno.EPROTO


class UnsupportedSystem(BindsockError):
    """bindsock has no kernel backend for this system."""

    default_errno: int = _errno.ENOTSUP
