"""Darwin's DNSServiceGetAddrInfo, which lets the system's resolver daemon ask by a given interface.

It is part of libSystem, needs neither a thread nor an entitlement, and has a descriptor that is readable when the daemon has
answered. The declarations are from Apple's public ``dns_sd.h`` (mDNSResponder ``mDNSShared/dns_sd.h``). None of the functions is
variadic, so ctypes calls them correctly on arm64, too.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
from ctypes import POINTER, c_char_p, c_int, c_int32, c_uint32, c_void_p
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

from bindsock.options import known_keywords_only
from bindsock.resolvers.answers import Answer, NoResolver, no_such_name, try_again

if TYPE_CHECKING:
    from bindsock.model.network import IPAddress
    from bindsock.netmon.watcher import Watcher

_MORE_COMING = 0x1
_ADD = 0x2
_RETURN_INTERMEDIATES = 0x1000
"""Without this flag the daemon does not answer for a name that does not exist."""
_TIMEOUT = 0x10000
_PROTOCOLS = {socket.AF_INET: 1, socket.AF_INET6: 2}

_NO_SUCH_NAME = -65538
_NO_SUCH_RECORD = -65554
_SERVICE_NOT_RUNNING = -65563
_TIMED_OUT = -65568

_DARWIN_AF_INET = 2
_DARWIN_AF_INET6 = 30

_Reply = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_uint32, c_int32, c_char_p, c_void_p, c_uint32, c_void_p)
"""sdRef, flags, interfaceIndex, errorCode, hostname, address, ttl, context"""


class DnsSdLookup:
    """Looks up names by mDNSResponder.

    :param library: the library with the functions; libSystem unless given
    :param timeout: seconds for one query
    """

    @known_keywords_only
    def __init__(self, library: ctypes.CDLL | None = None, *, timeout: float = 15.0) -> None:
        self._library = library
        self._timeout = timeout
        self._functions: _Functions | None = None

    async def __call__(self, name: str, family: socket.AddressFamily, index: int, watcher: Watcher) -> Answer:
        if self._functions is None:
            self._functions = _Functions(self._library if self._library is not None else ctypes.CDLL(None))
        query = _Query(self._functions, name, family, index)
        try:
            async with asyncio.timeout(self._timeout):
                return await query.done
        except TimeoutError:
            raise try_again(name, f"mDNSResponder did not answer within {self._timeout:g} s") from None
        finally:
            query.close()


class _Functions:
    """The library's functions, with their types.

    :raises NoResolver: the library does not have them; only Darwin's does
    """

    def __init__(self, library: Any) -> None:
        try:
            self.get_addr_info = library.DNSServiceGetAddrInfo
            self.sock_fd = library.DNSServiceRefSockFD
            self.process_result = library.DNSServiceProcessResult
            self.deallocate = library.DNSServiceRefDeallocate
        except AttributeError:
            raise NoResolver(errno.ENOSYS, "this system has no DNSServiceGetAddrInfo") from None
        self.get_addr_info.argtypes = [POINTER(c_void_p), c_uint32, c_uint32, c_uint32, c_char_p, _Reply, c_void_p]
        self.get_addr_info.restype = c_int32
        self.sock_fd.argtypes = [c_void_p]
        self.sock_fd.restype = c_int
        self.process_result.argtypes = [c_void_p]
        self.process_result.restype = c_int32
        self.deallocate.argtypes = [c_void_p]
        self.deallocate.restype = None


class _Query:
    """A query. The daemon keeps it open until :meth:`close`."""

    def __init__(self, functions: _Functions, name: str, family: socket.AddressFamily, index: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._functions = functions
        self._name = name
        self._addresses: dict[IPAddress, None] = {}
        self._ttl: int | None = None
        self._ref = c_void_p()
        self._reply = _Reply(self._replied)  # must stay alive: C calls it while the query is open
        self.done: asyncio.Future[Answer] = self._loop.create_future()
        try:
            wire_name = name.encode("ascii") if name.isascii() else name.encode("idna")
        except UnicodeError as error:
            raise no_such_name(name) from error
        flags = _RETURN_INTERMEDIATES | _TIMEOUT
        code = functions.get_addr_info(ctypes.byref(self._ref), flags, index, _PROTOCOLS[family], wire_name, self._reply, None)
        if code == _SERVICE_NOT_RUNNING:
            raise NoResolver(errno.ECONNREFUSED, "mDNSResponder is not running")
        if code != 0:
            raise try_again(name, f"mDNSResponder refused the query with error {code}")
        self._fd = functions.sock_fd(self._ref)
        self._loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        self._functions.deallocate(self._ref)

    def _readable(self) -> None:
        code = self._functions.process_result(self._ref)
        if code != 0:
            self._fail(try_again(self._name, f"mDNSResponder closed the connection with error {code}"))

    def _replied(
        self,
        ref: int | None,
        flags: int,
        index: int,
        code: int,
        name: bytes | None,
        address: int | None,
        ttl: int,
        context: int | None,
    ) -> None:
        """Called by C, from :meth:`_readable`. It must not raise."""
        if code in (_NO_SUCH_NAME, _NO_SUCH_RECORD):
            pass
        elif code == _TIMED_OUT:
            self._fail(try_again(self._name, "no name server answered"))
            return
        elif code != 0:
            self._fail(try_again(self._name, f"mDNSResponder answered with error {code}"))
            return
        elif flags & _ADD and address:
            found = _address_at(address)
            if found is not None:
                self._addresses[found] = None
                self._ttl = ttl if self._ttl is None else min(ttl, self._ttl)
        if not flags & _MORE_COMING and not self.done.done():
            # Nothing is cached here: the daemon has a cache, which forgets an interface's answers when the interface goes.
            if self._addresses or code == _NO_SUCH_RECORD:
                self.done.set_result(Answer(tuple(self._addresses)))
            elif code == _NO_SUCH_NAME:
                self.done.set_exception(no_such_name(self._name))

    def _fail(self, error: OSError) -> None:
        self._loop.remove_reader(self._fd)
        if not self.done.done():
            self.done.set_exception(error)


def _address_at(pointer: int) -> IPAddress | None:
    """The address in a ``struct sockaddr_in`` or ``sockaddr_in6`` as Darwin lays it out (xnu ``bsd/netinet/in.h``)."""
    length, family = ctypes.string_at(pointer, 2)
    if family == _DARWIN_AF_INET and length >= 16:
        return IPv4Address(ctypes.string_at(pointer + 4, 4))
    if family == _DARWIN_AF_INET6 and length >= 28:
        address = IPv6Address(ctypes.string_at(pointer + 8, 16))
        scope = c_uint32.from_address(pointer + 24).value
        return IPv6Address(f"{address}%{scope}") if address.is_link_local and scope else address
    return None
