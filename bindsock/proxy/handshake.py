"""Parses the handshake of a proxy client, SOCKS5 or HTTP.

Theory of operation. A :class:`Handshake` does no I/O. It takes bytes as they arrive, and returns one event at a time: send
something, dial, or refuse. One port serves both protocols: a SOCKS client starts with the byte 5, but no HTTP method does. After
the :class:`Dial` event, the caller dials and answers with :meth:`Handshake.accepted` or :meth:`Handshake.failed`. It sends the
bytes in :attr:`Dial.early` to the other side first.

* SOCKS5: RFC 1928, only CONNECT; passwords by RFC 1929.
* HTTP ``CONNECT``: RFC 9110 section 9.3.6.
* HTTP requests in absolute form (``GET http://host/ HTTP/1.1``, RFC 9112 section 3.2.2), with which clients use a proxy for plain
  HTTP: the request is passed on in origin form, with ``Connection: close``, so that one connection carries one request.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

_SOCKS_CONNECT = 1
_NO_AUTHENTICATION, _PASSWORD, _NO_ACCEPTABLE_METHOD = 0, 2, 0xFF
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\xff]+) HTTP/1\.([01])")
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"proxy-authenticate"})


@dataclass(frozen=True, slots=True)
class NeedData:
    """Wait for more data."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send these bytes to the client, and ask for the next event."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Dial:
    """Dial the destination of the client."""

    host: str
    port: int
    protocol: str
    """``socks5``, ``connect`` or ``http``."""
    early: bytes
    """The first bytes for the other side: data that the client has already sent, or its rewritten request."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Send these bytes, if there are any, and close."""

    data: bytes
    reason: str


Event: TypeAlias = NeedData | Send | Dial | Refuse


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason for a failed dial, as a code of both protocols."""

    socks: int
    status: str


GENERAL_FAILURE = Failure(1, "502 Bad Gateway")
NOT_ALLOWED = Failure(2, "403 Forbidden")
NETWORK_UNREACHABLE = Failure(3, "503 Service Unavailable")
HOST_UNREACHABLE = Failure(4, "502 Bad Gateway")
NOT_A_HOST = Failure(4, "400 Bad Request")
CONNECTION_REFUSED = Failure(5, "502 Bad Gateway")
TIMED_OUT = Failure(6, "504 Gateway Timeout")


class Handshake:
    """The handshake of one client.

    :param credentials: passwords by user name; ``None`` to accept every client
    :param limit: the maximum size of a request's head, in bytes
    """

    def __init__(self, credentials: Mapping[str, str] | None = None, *, limit: int = 16384) -> None:
        self._credentials = credentials
        self._limit = limit
        self._buffer = b""
        self._step = self._begin
        self._protocol = ""

    def receive(self, data: bytes) -> None:
        """Add bytes from the client."""
        self._buffer += data

    def next_event(self) -> Event:
        """The next event. :class:`Dial` and :class:`Refuse` are the last events."""
        try:
            return self._step()
        except _Malformed as error:
            return self._refuse(error.data, str(error))

    def accepted(self) -> bytes:
        """The answer for the client after a successful dial. It does not contain the local address of the connection."""
        if self._protocol == "socks5":
            return _socks_reply(0)
        if self._protocol == "connect":
            return b"HTTP/1.1 200 Connection established\r\n\r\n"
        return b""

    def failed(self, failure: Failure, reason: str) -> bytes:
        """The answer for the client after a failed dial."""
        if self._protocol == "socks5":
            return _socks_reply(failure.socks)
        return http_error(failure.status, reason)

    def _begin(self) -> Event:
        if not self._buffer:
            return NeedData()
        if self._buffer[0] == 5:
            self._protocol = "socks5"
            self._step = self._socks_greeting
        elif self._buffer[0] == 4:
            return self._refuse(b"\x00\x5b" + bytes(6), "SOCKS4 is not supported")
        else:
            self._step = self._http_head
        return self._step()

    def _refuse(self, data: bytes, reason: str) -> Refuse:
        self._step = _finished
        return Refuse(data, reason)

    def _socks_greeting(self) -> Event:
        if len(self._buffer) < 2 or len(self._buffer) < 2 + self._buffer[1]:
            return NeedData()
        methods = self._take(2 + self._buffer[1])[2:]
        wanted = _NO_AUTHENTICATION if self._credentials is None else _PASSWORD
        if wanted not in methods:
            return self._refuse(bytes([5, _NO_ACCEPTABLE_METHOD]), "no acceptable authentication method")
        self._step = self._socks_request if self._credentials is None else self._socks_password
        return Send(bytes([5, wanted]))

    def _socks_password(self) -> Event:
        buffer = self._buffer
        if len(buffer) < 2 or len(buffer) < 3 + buffer[1] or len(buffer) < 3 + buffer[1] + buffer[2 + buffer[1]]:
            return NeedData()
        if buffer[0] != 1:
            raise _Malformed("unknown version of the password negotiation", b"\x01\x01")
        user_length = buffer[1]
        message = self._take(3 + user_length + buffer[2 + user_length])
        if not self._known(message[2 : 2 + user_length], message[3 + user_length :]):
            return self._refuse(b"\x01\x01", "wrong user name or password")
        self._step = self._socks_request
        return Send(b"\x01\x00")

    def _socks_request(self) -> Event:
        buffer = self._buffer
        if len(buffer) < 5:
            return NeedData()
        version, command, _, kind, first = buffer[:5]
        if version != 5:
            raise _Malformed("unknown version in the request", _socks_reply(1))
        lengths = {1: 4, 3: 1 + first, 4: 16}
        if kind not in lengths:
            return self._refuse(_socks_reply(8), f"unknown address type {kind}")
        end = 4 + lengths[kind]
        if len(buffer) < end + 2:
            return NeedData()
        message = self._take(end + 2)
        if command != _SOCKS_CONNECT:
            return self._refuse(_socks_reply(7), f"unsupported command {command}")
        host = _name(message[5:end], _socks_reply(4)) if kind == 3 else str(ipaddress.ip_address(message[4:end]))
        (port,) = struct.unpack("!H", message[end:])
        if port == 0:
            raise _Malformed("port 0", _socks_reply(1))
        self._step = _finished
        return Dial(host, port, "socks5", self._take(len(self._buffer)))

    def _http_head(self) -> Event:
        end = self._buffer.find(b"\r\n\r\n", 0, self._limit)
        if end < 0:
            if len(self._buffer) >= self._limit:
                raise _Malformed(
                    "the head is too long", http_error("431 Request Header Fields Too Large", "the head is too long")
                )
            return NeedData()
        request_line, *lines = self._take(end + 4)[:-4].split(b"\r\n")
        parsed = _REQUEST_LINE.fullmatch(request_line)
        if parsed is None:
            raise _Malformed("not an HTTP/1 request", http_error("400 Bad Request", "not an HTTP/1 request"))
        method, target = parsed[1], parsed[2]
        headers = [_header(line) for line in lines]
        self._protocol = "connect" if method == b"CONNECT" else "http"
        if self._credentials is not None and not any(n == b"proxy-authorization" and self._admits(v) for n, v, _ in headers):
            return self._refuse(
                http_error(
                    "407 Proxy Authentication Required", "credentials are needed", b'Proxy-Authenticate: Basic realm="bindsock"'
                ),
                "no or wrong credentials",
            )
        self._step = _finished
        if method == b"CONNECT":
            url = _split(b"//" + target)
            if url.port is None or url.path or url.query or url.fragment or "@" in url.netloc:
                raise _Malformed("CONNECT wants host:port", http_error("400 Bad Request", "CONNECT wants host:port"))
            host = _host(url)
            return Dial(host, url.port, "connect", self._take(len(self._buffer)))
        url = _split(target)
        if url.scheme != "http":
            raise _Malformed(
                f"neither CONNECT nor an http:// address: {request_line[:80]!r}",
                http_error("400 Bad Request", "this is a proxy: ask for http://..., or CONNECT"),
            )
        return Dial(_host(url), url.port or 80, "http", self._rewritten(method, url, headers, parsed[3]))

    def _rewritten(self, method: bytes, url: SplitResult, headers: list[tuple[bytes, bytes, bytes]], minor: bytes) -> bytes:
        """The request in origin form."""
        named = {name.strip().lower() for n, value, _ in headers if n == b"connection" for name in value.split(b",")}
        # Content-Length and Transfer-Encoding decide where the body ends, so a "Connection" header must not remove them.
        dropped = _HOP_BY_HOP | (named - {b"content-length", b"transfer-encoding", b"host"})
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        kept = [line for name, _, line in headers if name not in dropped]
        head = [method + b" " + path.encode("latin-1") + b" HTTP/1." + minor, *kept, b"Connection: close", b"", b""]
        return b"\r\n".join(head) + self._take(len(self._buffer))

    def _admits(self, value: bytes) -> bool:
        scheme, _, encoded = value.partition(b" ")
        if scheme.lower() != b"basic":
            return False
        try:
            user, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        except binascii.Error:
            return False
        return self._known(user, password)

    def _known(self, user: bytes, password: bytes) -> bool:
        assert self._credentials is not None
        known = False
        for name, secret in self._credentials.items():
            # Always make both comparisons, so that the time does not reveal which user names exist.
            known |= hmac.compare_digest(name.encode(), user) & hmac.compare_digest(secret.encode(), password)
        return known

    def _take(self, count: int) -> bytes:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken


class _Malformed(Exception):
    def __init__(self, reason: str, data: bytes) -> None:
        super().__init__(reason)
        self.data = data


def _finished() -> Event:
    return NeedData()


def http_error(status: str, reason: str, *headers: bytes) -> bytes:
    """A complete HTTP response with an error, which ends the connection."""
    body = f"bindsock proxy: {reason}\n".encode()
    lines = [
        f"HTTP/1.1 {status}".encode(),
        b"Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}".encode(),
        b"Connection: close",
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _socks_reply(code: int) -> bytes:
    return bytes([5, code, 0, 1]) + bytes(6)


def _header(line: bytes) -> tuple[bytes, bytes, bytes]:
    """The name in lower case, the value, and the line itself."""
    name, colon, value = line.partition(b":")
    # Folded lines and lines without a name are refused, because two parsers could read them as different requests (RFC 9112
    # section 5.2).
    if not colon or not _TOKEN.fullmatch(name) or b"\n" in value or b"\r" in value or b"\0" in value:
        raise _Malformed(f"not a header: {line[:80]!r}", http_error("400 Bad Request", "not a header"))
    return name.lower(), value.strip(b" \t"), line


def _split(target: bytes) -> SplitResult:
    try:
        url = urlsplit(target.decode("latin-1"))
        _ = url.port  # reading the port checks it
    except ValueError as error:
        raise _Malformed(f"not an address: {error}", http_error("400 Bad Request", "not an address")) from error
    return url


def _host(url: SplitResult) -> str:
    if not url.hostname or url.port == 0:
        raise _Malformed("no host", http_error("400 Bad Request", "no host"))
    return _name(url.hostname.encode("latin-1"), http_error("400 Bad Request", "not a host name"))


def _name(name: bytes, reply: bytes) -> str:
    """Check the characters of a client's host name. The resolver decides whether the name exists."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise _Malformed("a host name that is not UTF-8", reply) from None
    if not text or len(text) > 255 or not text.isprintable() or any(c in " /@\\" for c in text):
        raise _Malformed(f"not a host name: {text[:80]!r}", reply)
    return text
