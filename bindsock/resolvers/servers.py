"""DNS queries to given servers, over sockets bound to the effective interface. dnspython encodes and decodes the messages."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from bindsock.dial.binding import bind_or_close, settle_when_connecting
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.extras import needs
from bindsock.model.network import family_of, is_address
from bindsock.netmon.importing import Imports
from bindsock.netmon.no_interface import no_effective_interface
from bindsock.options import known_keywords_only
from bindsock.resolvers.answers import Answer, NoResolver, no_such_name, try_again

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dns.message

    from bindsock.dial.resolving import SockAddr
    from bindsock.model.network import IPAddress
    from bindsock.netmon.watcher import Watcher

_PORT = 53
_DNSPYTHON = ("dns.message", "dns.rdtypes.IN.A", "dns.rdtypes.IN.AAAA", "dns.rdtypes.ANY.CNAME")
"""What a query and its answer need. dnspython itself imports the types of records when it comes across them."""
_PAYLOAD = 1232
"""The largest UDP answer, in bytes, that is not fragmented on usual networks (DNS flag day 2020)."""


class ServerLookup:
    """Looks up names by asking certain name servers.

    :param servers: their addresses, or pairs of address and port, in the order in which to ask
    :param timeout: seconds to wait for each server's answer
    :param rounds: how often to ask each server
    :raises ImportError: dnspython is not installed
    """

    @known_keywords_only
    def __init__(self, servers: Sequence[str | tuple[str, int]], *, timeout: float = 2.0, rounds: int = 2) -> None:
        with needs("dns"):
            import dns  # noqa: F401, early, so that a missing library is noticed before the first lookup

        self._servers = [(ip_address(s), _PORT) if isinstance(s, str) else (ip_address(s[0]), s[1]) for s in servers]
        self._timeout = timeout
        self._rounds = rounds

    async def __call__(self, name: str, family: socket.AddressFamily, index: int, watcher: Watcher) -> Answer:
        await watcher.runtime.shared(Imports).ready(*_DNSPYTHON)
        import dns.exception
        import dns.message
        import dns.rcode

        if not self._servers:
            raise NoResolver(errno.ENOENT, "no name servers are given")
        try:
            query = dns.message.make_query(name, "A" if family == socket.AF_INET else "AAAA", use_edns=0, payload=_PAYLOAD)
        except dns.exception.DNSException as error:
            raise no_such_name(name) from error
        why = "nobody answered"
        for server, port in self._servers * self._rounds:
            try:
                async with asyncio.timeout(self._timeout):
                    response = await self._ask(query, server, port, watcher)
            except TimeoutError:
                why = f"{server} did not answer within {self._timeout:g} s"
                continue
            except (OSError, EOFError) as error:
                why = f"{server}: {error}"
                continue
            if response.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                return _answer(name, response)
            why = f"{server} answered with {dns.rcode.to_text(response.rcode())}"
        raise try_again(name, why)

    async def _ask(self, query: dns.message.QueryMessage, server: IPAddress, port: int, watcher: Watcher) -> dns.message.Message:
        import dns.exception
        import dns.flags
        import dns.message

        wire = query.to_wire()
        loop = asyncio.get_running_loop()
        with await _connected(watcher, server, port, socket.SOCK_DGRAM) as sock:
            await loop.sock_sendall(sock, wire)
            while True:
                try:
                    response = dns.message.from_wire(await loop.sock_recv(sock, 65535))
                except dns.exception.DNSException:
                    continue  # a spoofed answer or a broken server; the timeout limits the wait
                if query.is_response(response):
                    break
        if not response.flags & dns.flags.TC:
            return response
        with await _connected(watcher, server, port, socket.SOCK_STREAM) as sock:
            await loop.sock_sendall(sock, struct.pack("!H", len(wire)) + wire)
            (length,) = struct.unpack("!H", await _read(sock, 2))
            try:
                response = dns.message.from_wire(await _read(sock, length))
            except dns.exception.DNSException as error:
                raise OSError(errno.EBADMSG, f"an answer that cannot be understood: {error}") from error
        if not query.is_response(response):
            raise OSError(errno.EBADMSG, "an answer to another question")
        return response


class ConfiguredLookup:
    """Looks up names by asking the system's configured name servers, by an interface.

    These are the network's own servers unless a VPN has replaced them.

    :param path: the file that names the servers
    """

    @known_keywords_only
    def __init__(self, path: str = "/etc/resolv.conf") -> None:
        self._path = path

    async def __call__(self, name: str, family: socket.AddressFamily, index: int, watcher: Watcher) -> Answer:
        servers = _configured_servers(self._path)
        if not servers:
            raise NoResolver(errno.ENOENT, f"{self._path} names no server")
        try:
            ask = ServerLookup(servers)
        except ImportError as error:
            raise NoResolver(errno.ENOENT, f"cannot ask the servers of {self._path}: {error}") from error
        return await ask(name, family, index, watcher)


def _configured_servers(path: str) -> list[str]:
    """The addresses in a file that is written like ``/etc/resolv.conf``.

    ``dns.resolver`` can read it, too, but also imports every library by which dnspython could ask: trio, httpx, aioquic.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise NoResolver(errno.ENOENT, f"{path} cannot be read: {error}") from error
    values = [words[1] for line in lines if len(words := line.split()) > 1 and words[0] == "nameserver"]
    return [value for value in values if is_address(value)]


async def _connected(watcher: Watcher, server: IPAddress, port: int, kind: socket.SocketKind) -> socket.socket:
    decider = watcher.refresh()
    decision = decider.decide(server)
    if decision.interface is None and not decision.unbound:
        raise no_effective_interface(f"the name server {server}", (decision,), watcher.kernel, decider.network)
    sock = FollowedSocket(family_of(server), kind)
    sock.setblocking(False)
    bind_or_close(watcher.kernel, sock, decision, server)
    settle_when_connecting(sock, watcher.kernel, decision, decider.network)
    try:
        await asyncio.get_running_loop().sock_connect(sock, _sockaddr(server, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _sockaddr(address: IPAddress, port: int) -> SockAddr:
    return (str(address), port)


async def _read(sock: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        more = await loop.sock_recv(sock, count - len(data))
        if not more:
            raise EOFError("the connection ended early")
        data += more
    return data


def _answer(name: str, response: dns.message.Message) -> Answer:
    """The addresses at the end of the CNAME chain."""
    import dns.message
    import dns.rcode
    from dns.exception import DNSException

    assert isinstance(response, dns.message.QueryMessage)
    try:
        chain = response.resolve_chaining()
    except DNSException as error:
        raise try_again(name, f"the answer contradicts itself: {error}") from error
    if chain.answer is None:
        if response.rcode() == dns.rcode.NXDOMAIN:
            raise no_such_name(name)
        return Answer(())
    return Answer(tuple(ip_address(record.address) for record in chain.answer), float(chain.minimum_ttl))
