"""The network that the pages describe: a laptop with Wi-Fi, Ethernet and a VPN, and the server ``example.com``.

Only this process and its children can resolve the names: their mount namespace has its own ``/etc/hosts`` and
``/etc/resolv.conf``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self
from unittest import mock

import trustme
from aioquic.asyncio.server import serve as serve_quic
from aioquic.quic.configuration import QuicConfiguration

from bindsock.testing.lab import Lab
from tests.serving import Conversations, serve_inside

ADDRESS = "192.0.2.1"
NAMES = ("example.com", "api.example.com", "logs.example.com", "vpn.example.com", "chat.example.com")
HTTP, HTTPS, LINES, LOGS, METRICS, QUIC = 80, 443, 6667, 5140, 8125, 4433
_NETWORK = re.compile(r"<!--- network: uplinks=(?P<uplinks>\S+) vpn=(?P<vpn>\S+) -->")
_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000


def described(page: str) -> tuple[Sequence[str], str]:
    """The uplinks and the mode of the VPN that a comment in the page asks for; ``none`` is no VPN."""
    wanted = _NETWORK.search(page)
    return (wanted["uplinks"].split(","), wanted["vpn"]) if wanted else (("wlan0", "eth0"), "policy")


@contextlib.contextmanager
def world(page: str, directory: Path) -> Iterator[Lab]:
    """Put this process into the described network, with the VPN up.

    :param page: the page's text
    :param directory: the directory for certificates
    """
    uplinks, vpn = described(page)
    with Lab(uplinks=uplinks) as lab:
        lab.ip("address", "add", f"{ADDRESS}/32", "dev", "lo", namespace="server")
        lab.ip("route", "add", f"{ADDRESS}/32", "via", lab.server.ipv4, namespace="router")
        authority = trustme.CA()
        trusted = directory / "authority.pem"
        authority.cert_pem.write_to_path(str(trusted))
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
            os.environ[name] = str(trusted)
        hosts = "".join(f"{ADDRESS} {name}\n" for name in NAMES)
        _replace_files({"/etc/hosts": f"127.0.0.1 localhost\n{hosts}", "/etc/resolv.conf": ""}, directory)
        # aioquic and others use certifi's certificates, and ignore the environment.
        with mock.patch("certifi.where", return_value=str(trusted)), Servers(lab, authority, directory), lab.inside():
            if vpn != "none":
                lab.vpn_up(vpn)  # type: ignore[arg-type]
            yield lab


def _replace_files(contents: Mapping[str, str], directory: Path) -> None:
    """Replace the contents of files, for this process and its children only."""
    _call("unshare", _CLONE_NEWNS)
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    for path, content in contents.items():
        replacement = directory / Path(path).name
        replacement.write_text(content)
        _call("mount", str(replacement).encode(), path.encode(), None, _MS_BIND, None)


def _call(name: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


class Servers:
    """The servers of ``example.com``, on an event loop in their own thread."""

    def __init__(self, lab: Lab, authority: trustme.CA, directory: Path) -> None:
        self._lab = lab
        self._certificate = authority.issue_cert(*NAMES)
        self._directory = directory
        self._ended: asyncio.Event
        self._ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._records: dict[str, int] = {}
        self._streams: set[asyncio.Task[None]] = set()
        self._conversations = Conversations()

    def __enter__(self) -> Self:
        self._thread.start()
        self._loop = self._ready.result(timeout=20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(timeout=20)

    def _run(self) -> None:
        serve_inside(self._lab, self._serve, self._ready)

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        context = QuicConfiguration(is_client=False)
        chain, key = self._directory / "chain.pem", self._directory / "key.pem"
        for pem in self._certificate.cert_chain_pems:
            pem.write_to_path(str(chain), append=True)
        self._certificate.private_key_pem.write_to_path(str(key))
        context.load_cert_chain(chain, key)
        listeners = [
            await asyncio.start_server(self._conversations.by(_http), ADDRESS, HTTP),
            await asyncio.start_server(self._conversations.by(_http), ADDRESS, HTTPS, ssl=_tls(self._certificate)),
            await asyncio.start_server(self._conversations.by(_lines), ADDRESS, LINES),
            await asyncio.start_server(self._conversations.by(self._logs), ADDRESS, LOGS),
        ]
        echo, _ = await loop.create_datagram_endpoint(_Echo, local_addr=(ADDRESS, METRICS))
        quic = await serve_quic(ADDRESS, QUIC, configuration=context, stream_handler=self._quic_stream)
        self._ready.set_result(loop)
        await self._ended.wait()
        for listener in listeners:
            listener.close()
        echo.close()
        quic.close()
        await self._conversations.end()

    def _quic_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(_lines(reader, writer))
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)

    async def _logs(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """``hello NAME`` is answered by ``have N``, ``record N TEXT`` by ``ack N``."""
        name = ""
        while line := await reader.readline():
            match line.decode().split(maxsplit=2):
                case ["hello", name]:
                    writer.write(f"have {self._records.setdefault(name, 0)}\n".encode())
                case ["record", number, _]:
                    assert int(number) <= self._records[name] + 1, "a record was lost"
                    self._records[name] = max(self._records[name], int(number))
                    writer.write(f"ack {number}\n".encode())


def _tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request with ``hello`` and the client's address. (aiohttp would read the certificates before they exist.)"""
    body = f"hello {writer.get_extra_info('peername')[0]}\n".encode()
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def _lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line with ``ok`` and the line."""
    while line := await reader.readline():
        writer.write(b"ok " + line)


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.transport.sendto(data, addr)
