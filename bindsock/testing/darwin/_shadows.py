"""The Darwin backend on the simulated kernel, also for real sockets.

A real socket cannot be bound to an interface of the simulated machine. It gets a *shadow* there, a simulated socket that has
Darwin's options, while the real socket keeps its addresses and data. So a whole program can run over loopback on Darwin's code.
"""

from __future__ import annotations

import errno
import socket
import weakref
from typing import TYPE_CHECKING, Any, cast

from bindsock.kernel.darwin import DarwinKernel, abi
from bindsock.testing.darwin._errors import darwin_error
from bindsock.testing.darwin._sockets import SimulatedSocket

if TYPE_CHECKING:
    from bindsock.model.network import Interface
    from bindsock.testing.darwin._kernel import SimulatedDarwin

_DARWINS = {errno.ENOTCONN: abi.ENOTCONN, errno.EINVAL: abi.EINVAL, errno.EBADF: abi.EBADF}


class SimulatedDarwinKernel(DarwinKernel):
    """:class:`bindsock.kernel.darwin.DarwinKernel` on a simulated machine, for simulated and real sockets."""

    def __init__(self, machine: SimulatedDarwin) -> None:
        super().__init__(machine)
        self.machine = machine
        self._shadows: weakref.WeakKeyDictionary[socket.socket, Shadow] = weakref.WeakKeyDictionary()

    def suspended(self) -> float:
        return self.machine.slept

    def bind(self, sock: socket.socket, interface: Interface) -> None:
        super().bind(self._shadow(sock), interface)

    def rebind(
        self,
        sock: socket.socket,
        interface: Interface,
        *,
        peer: tuple[Any, ...] | None = None,
        port: int | None = None,
        replaceable: bool = False,
    ) -> None:
        super().rebind(self._shadow(sock), interface, peer=peer, port=port, replaceable=replaceable)

    def unbind(self, sock: socket.socket, *, peer: tuple[Any, ...] | None = None, port: int | None = None) -> None:
        super().unbind(self._shadow(sock), peer=peer, port=port)

    def bound(self, sock: socket.socket) -> int | None:
        return super().bound(self._shadow(sock))

    def activity(self, sock: socket.socket) -> object:
        return super().activity(self._shadow(sock))

    def _shadow(self, sock: socket.socket) -> socket.socket:
        if isinstance(sock, SimulatedSocket):
            return cast(socket.socket, sock)
        # A transport's socket is another object with the same descriptor.
        descriptor = sock.fileno() if hasattr(sock, "fileno") else -1
        shadow = next((s for real, s in self._shadows.items() if real is sock or real.fileno() == descriptor != -1), None)
        if shadow is None:
            if not isinstance(sock, socket.socket):
                return sock
            shadow = self._shadows[sock] = Shadow(self.machine, sock)
        return cast(socket.socket, shadow)


class Shadow:
    """A real socket, with Darwin's options."""

    def __init__(self, machine: SimulatedDarwin, sock: socket.socket) -> None:
        self.family, self.type = sock.family, sock.type
        self._real = weakref.ref(sock)
        family = abi.AF_INET if sock.family == socket.AF_INET else abi.AF_INET6
        self._options = SimulatedSocket(machine, family, sock.type, sock.proto)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self._call("fileno")
        self._options.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, size: int = -1) -> Any:
        self._call("fileno")
        return self._options.getsockopt(level, option, size)

    def getsockname(self) -> Any:
        return self._call("getsockname")

    def getpeername(self) -> Any:
        return self._call("getpeername")

    def connect(self, address: Any) -> None:
        self._call("connect", address)

    def _call(self, name: str, *arguments: Any) -> Any:
        real = self._real()
        if real is None or real.fileno() == -1:
            raise darwin_error(abi.EBADF)
        try:
            return getattr(real, name)(*arguments)
        except OSError as error:
            raise darwin_error(_DARWINS.get(error.errno or 0, error.errno or 0)) from error
