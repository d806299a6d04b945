"""Each file in ``examples``, run as a user runs it, beneath a VPN that has the default route, against a real server."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import hashlib
import itertools
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import asyncssh
import pytest
import trustme
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve as serve_quic
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent

from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.conftest import servers
from tests.integrations.servers import Servers
from tests.integrations.tunnel import nothing_through_the_tunnel

__all__ = ["servers"]

pytestmark = pytest.mark.lab

EXAMPLES = Path(__file__).parents[1] / "examples"
PATIENCE = 90.0
CHAT = 7700


class Example:
    """A running example. Leaving the block interrupts it, as Ctrl-C does, if it has not ended: it must end without a message."""

    def __init__(self, name: str, *arguments: object, stdin: int | None = None, **environment: str) -> None:
        command = [sys.executable, "-u", "-W", "error", str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
        inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self._process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=inherited | environment,
        )
        self._read = b""
        self.errors = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        try:
            if self._process.returncode is None:
                self.interrupt()
                assert exc is not None or (self.status, self.errors) == (0, "")
        finally:
            with self._process:  # which closes the pipes
                self._process.kill()

    def rest(self) -> list[str]:
        """Wait until the example has ended. Returns all further lines."""
        printed, errors = self._process.communicate(timeout=PATIENCE)
        self.errors = errors.decode()
        return (self._read + printed).decode().splitlines()

    def interrupt(self) -> list[str]:
        """Press Ctrl-C. Returns all further lines."""
        self._process.send_signal(signal.SIGINT)
        return self.rest()

    @property
    def status(self) -> int:
        """The exit status of the example."""
        return self._process.wait(PATIENCE)

    def has_more(self, seconds: float) -> bool:
        """Whether the example prints anything within this time."""
        assert self._process.stdout is not None
        return bool(self._read) or bool(select.select([self._process.stdout], [], [], seconds)[0])

    def line(self) -> str:
        """The next line that the example prints."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._read:
            assert select.select([descriptor], [], [], PATIENCE)[0], "it says nothing"
            part = os.read(descriptor, 1 << 16)
            assert part, f"it has ended: {self.rest()} {self.errors}"
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def line_with(self, text: str) -> str:
        """The next line that contains the text."""
        for _ in range(1000):
            line = self.line()
            if text in line:
                return line
        raise AssertionError(f"no line with {text!r}")


def output(name: str, *arguments: object, errors: str = "", **environment: str) -> list[str]:
    """The output of an example that ends by itself. Its standard error must be ``errors``."""
    with Example(name, *arguments, stdin=None, **environment) as example:
        lines = example.rest()
        assert example.errors == errors
    return lines


class HttpOverQuic:
    """An HTTP/3 server in a thread inside the laboratory's server: it answers with the client's address, line by line."""

    PORT = 4434

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._lab = lab
        self.authority = directory / "authority.pem"
        self._chain, self._key = directory / "chain.pem", directory / "key.pem"
        authority = trustme.CA()
        certificate = authority.issue_cert(lab.server.ipv4)
        authority.cert_pem.write_to_path(str(self.authority))
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(str(self._chain), append=True)
        certificate.private_key_pem.write_to_path(str(self._key))
        self.connections = 0
        self.finishing = False
        self._ready: Future[Callable[[], object]] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._stop = self._ready.result(timeout=PATIENCE)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        self._stop()
        self._thread.join(timeout=PATIENCE)

    def finish(self) -> None:
        """End the answer after the next line."""
        self.finishing = True

    def _run(self) -> None:
        with self._lab.inside("server"):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        test = self
        answering: set[asyncio.Task[None]] = set()

        class Protocol(QuicConnectionProtocol):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self.http = H3Connection(self._quic)
                test.connections += 1

            def datagram_received(self, data: bytes | str, addr: Any) -> None:
                self.source = addr[0]
                super().datagram_received(data, addr)

            def quic_event_received(self, event: QuicEvent) -> None:
                for http_event in self.http.handle_event(event):
                    if isinstance(http_event, HeadersReceived):
                        answering.add(asyncio.get_running_loop().create_task(self.answer(http_event.stream_id)))

            async def answer(self, stream: int) -> None:
                self.http.send_headers(stream, [(b":status", b"200")])
                while not test.finishing:
                    self.http.send_data(stream, f"{self.source}\n".encode(), end_stream=False)
                    self.transmit()
                    await asyncio.sleep(0.02)
                self.http.send_data(stream, b"end\n", end_stream=True)
                self.transmit()

        configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
        configuration.load_cert_chain(self._chain, self._key)
        server = await serve_quic(self._lab.server.ipv4, self.PORT, configuration=configuration, create_protocol=Protocol)
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._ready.set_result(lambda: loop.call_soon_threadsafe(stopped.set))
        await stopped.wait()
        server.close()
        for task in answering:
            task.cancel()


class Chatter(Example):
    """A running chat client."""

    def __init__(self, lab: Lab, nick: str, *options: object, **environment: str) -> None:
        super().__init__("chat", "join", *options, lab.server.ipv4, CHAT, nick, stdin=subprocess.PIPE, **environment)

    def say(self, lines: Iterable[object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{line}\n" for line in lines).encode())

    def finish(self) -> None:
        """End the client's input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.stdin = None

    def lines(self, count: int) -> list[str]:
        """The next ``count`` lines that the client prints."""
        return [self.line() for _ in range(count)]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


@contextlib.contextmanager
def chat_server(lab: Lab, *options: object) -> Iterator[Example]:
    with lab.inside("server"):
        server = Example("chat", "serve", *options, lab.server.ipv4, CHAT)
    with server:
        assert server.line() == "listening"
        yield server


def said(nick: str, numbers: Iterable[int]) -> list[str]:
    return [f"{nick}: {number}" for number in numbers]


@pytest.fixture
def authority(servers: Servers, tmp_path: Path) -> str:
    """The file with the certificate to trust."""
    path = tmp_path / "authority.pem"
    path.write_bytes(servers.authority_pem)
    return str(path)


@pytest.fixture
def wifi(lab: Lab) -> str:
    return lab.address("wifi0")


@pytest.fixture
def eth(lab: Lab) -> str:
    return lab.address("eth0")


@pytest.fixture(autouse=True)
def nothing_into_the_tunnel(lab: Lab, servers: Servers) -> Iterator[None]:
    with nothing_through_the_tunnel(lab):
        yield


@pytest.mark.parametrize("tls", [False, True])
def test_open_connection(servers: Servers, wifi: str, tls: bool, authority: str) -> None:
    arguments = (servers.host, ports.HTTPS, "--tls") if tls else (servers.host, ports.HTTP)
    lines = output("open_connection", *arguments, SSL_CERT_FILE=authority)
    assert lines[:2] == ["connected by wifi0", "HTTP/1.1 200 OK"]
    assert lines[-1] == wifi


def test_udp(lab: Lab, wifi: str, eth: str) -> None:
    with Example("udp", lab.server.ipv4, lab.server.udp_port, "--interval", 0.01) as example:
        _, source, port, _ = example.line_with("received").split()
        assert source == wifi
        lab.down("wifi0")
        _, source, same_port, _ = example.line_with(f"received {eth}").split()
        assert same_port == port
        assert example.line_with("sent").endswith("by eth0")


def test_watch_changes(lab: Lab, wifi: str, eth: str) -> None:
    with Example("watch_changes", "--exclude", "docker*") as example:
        assert example.line() == "now wifi0"
        lab.down("wifi0")
        old, new = (f"{name} ({address}) via {lab.gateway(name)}" for name, address in (("wifi0", wifi), ("eth0", eth)))
        assert example.line_with("IPv4") == f"IPv4: {old} -> {new} [events]"


def test_watch_changes_says_so_where_nothing_may_be_used() -> None:
    with Example("watch_changes", "--exclude", "wifi*", "--exclude", "eth*") as example:
        assert "the default route" in example.line()


def test_synchronous(servers: Servers, wifi: str) -> None:
    lines = output("synchronous", servers.host, ports.HTTP, "/", "/?again", "/nowhere")
    assert lines[:2] == [f"/ by wifi0: 200 {wifi}", f"/?again by wifi0: 200 {wifi}"]
    assert lines[2].startswith("/nowhere by wifi0: 404")


def test_adopt(lab: Lab, wifi: str) -> None:
    lines = output("adopt", lab.server.ipv4, lab.server.tcp_port)
    assert lines[0] == "connected by wifi0"
    assert lines[1].startswith(f"hello {wifi} ")


@pytest.mark.parametrize("loop", [[], ["--uvloop"]], ids=["asyncio", "uvloop"])
def test_eventloop(lab: Lab, wifi: str, loop: list[str]) -> None:
    lines = output("eventloop", *loop, lab.server.ipv4, lab.server.tcp_port, "PING", "QUIT")
    assert lines[0] == "connected by wifi0"
    assert lines[1].startswith(f"hello {wifi} ")
    assert [line.strip() for line in lines[2:]] == ["PING", "QUIT"]


def test_eventloop_raises_what_ended_the_connection(servers: Servers) -> None:
    with Example("eventloop", servers.host, ports.SINK, "PING") as example:
        assert example.rest() == ["connected by wifi0"]
        assert example.errors.endswith("ConnectionResetError: the server closed the connection\n")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_httpx_client(servers: Servers, wifi: str, backend: str, authority: str) -> None:
    urls = [f"http://{servers.host}:{ports.HTTP}/", f"https://{servers.host}:{ports.HTTPS}/"]
    lines = output("httpx_client", "--backend", backend, *urls, SSL_CERT_FILE=authority)
    assert sorted(lines) == [f"{url} 200 {wifi}" for url in urls]


def test_httpx_client_says_a_request_again_whose_interface_went(lab: Lab, eth: str) -> None:
    url = f"http://{lab.server.ipv4}:8090/"
    with lab.inside("server"):
        listener = socket.create_server((lab.server.ipv4, 8090))
    listener.settimeout(PATIENCE)
    with listener, Example("httpx_client", url) as example:
        first, _ = listener.accept()
        with first:
            assert first.recv(1 << 16).startswith(b"GET / ")
            lab.down("wifi0")
            second, source = listener.accept()
            with second:
                second.recv(1 << 16)
                second.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + source[0].encode())
        assert (example.rest(), example.errors) == ([f"{url} 200 {eth}"], "")


def test_aiohttp_client(lab: Lab, servers: Servers, wifi: str, eth: str) -> None:
    url = f"http://{servers.host}:{ports.HTTP}/"
    with Example("aiohttp_client", url, "--interval", 0.05) as example:
        assert example.line() == f"200 {wifi}"
        lab.down("wifi0")
        assert example.line_with(eth) == f"200 {eth}"


def test_websockets_client(lab: Lab, servers: Servers, wifi: str, eth: str) -> None:
    with Example("websockets_client", f"ws://{servers.host}:{ports.WEBSOCKET}", "subscribe") as example:
        assert [example.line() for _ in range(3)] == ["connected by wifi0", f"received {wifi}", "received subscribe"]
        lab.down("wifi0")
        assert "wifi0 is down" in example.line_with("closed")
        assert [example.line() for _ in range(3)] == ["connected by eth0", f"received {eth}", "received subscribe"]


def test_redis_pubsub(lab: Lab, servers: Servers, wifi: str, eth: str) -> None:
    with Example("redis_pubsub", f"redis://{servers.host}:{ports.REDIS}?protocol=2", "news") as example:
        assert example.line() == "subscribe 1"
        assert servers.wait_for("subscribe") == {wifi}
        servers.publish("before")
        assert example.line() == "message before"
        lab.down("wifi0")
        assert example.line() == "subscribe 1"
        servers.publish("after")
        assert example.line() == "message after"
        assert servers.wait_for("subscribe") == {wifi, eth}


def test_asyncssh_client(lab: Lab, servers: Servers, wifi: str, tmp_path: Path) -> None:
    with lab.inside("server"):
        key = asyncio.run(asyncssh.get_server_host_key(servers.host, ports.SSH))
    assert key is not None
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[{servers.host}]:{ports.SSH} {key.export_public_key().decode()}")
    arguments = (servers.host, ports.SSH, "whence", "--username", "guest", "--known-hosts", known_hosts)
    assert output("asyncssh_client", *arguments, HOME=str(tmp_path), errors="connected by wifi0\n") == [wifi]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_anyio_client(lab: Lab, servers: Servers, wifi: str, backend: str) -> None:
    lines = output("anyio_client", servers.host, ports.HTTP, "--backend", backend)
    assert (lines[0], lines[-1]) == ("HTTP/1.1 200 OK", wifi)
    (reply,) = output("anyio_client", lab.server.ipv4, lab.server.udp_port, "what", "--udp", "--backend", backend)
    assert (reply.split()[0], reply.split()[2]) == (wifi, "what")


def test_trio_client(lab: Lab, wifi: str, eth: str) -> None:
    with Example("trio_client", lab.server.ipv4, lab.server.tcp_port) as example:
        assert example.line().startswith(f"received hello {wifi} ")
        lab.down("wifi0")
        assert "wifi0 is down" in example.line_with("broken")
        assert example.line().startswith(f"received hello {eth} ")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy(servers: Servers, wifi: str, scheme: str, authority: str) -> None:
    url = f"{scheme}://{servers.host}:{ports.HTTPS if scheme == 'https' else ports.HTTP}/"
    assert output("proxy", "curl", "--silent", "--show-error", "--cacert", authority, url) == [wifi]


def test_aioquic_client(lab: Lab, wifi: str, eth: str, tmp_path: Path) -> None:
    with (
        HttpOverQuic(lab, tmp_path) as server,
        Example("aioquic_client", lab.server.ipv4, server.PORT, "--certificates", server.authority) as example,
    ):
        assert example.line() == wifi
        lab.down("wifi0")
        assert example.line_with(eth) == eth
        server.finish()
        assert example.rest()[-1] == "end"
        assert example.errors == "200\n"
        assert server.connections == 1


multipath = pytest.mark.skipif(mptcp.protocol() is None, reason="this kernel has no multipath TCP")


@pytest.fixture(params=["kernel", "userspace"])
def path_manager(request: pytest.FixtureRequest, lab: Lab) -> None:
    Path("/proc/sys/net/mptcp/pm_type").write_text(str(int(request.param == "userspace")))


def arriving_from(served: socket.socket) -> set[str]:
    """The client's addresses, as the server's end of a multipath connection sees them."""
    return {str(state.subflow.remote) for state in mptcp.states(served) or () if state.established}


@multipath
@pytest.mark.usefixtures("path_manager")
def test_multipath_download(lab: Lab, wifi: str, eth: str, tmp_path: Path) -> None:
    block, whole = os.urandom(1 << 20), tmp_path / "whole"
    with lab.inside("server"):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, mptcp.IPPROTO_MPTCP)
        listener.bind((lab.server.ipv4, 0))
        listener.listen()
    listener.settimeout(PATIENCE)
    url = "http://{}:{}/".format(*listener.getsockname())
    with listener, Example("multipath_download", "get", url, whole) as example:
        served, _ = listener.accept()
        with served:
            served.settimeout(PATIENCE)
            assert served.recv(1 << 16).startswith(b"GET / ")
            served.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % (4 * len(block)) + block)
            assert example.line() == "by wifi0 from byte 0"
            lab.down("wifi0")
            served.sendall(block)
            assert example.line().startswith("by eth0 from byte ")
            until(lambda: arriving_from(served) == {eth})  # if wifi0 came back before, the old subflow could carry on
            lab.up("wifi0")
            lab.default("wifi0")
            rest = memoryview(2 * block)
            while rest and not example.has_more(0.05):  # both paths work, and the example prints a line when the path changes
                served.sendall(rest[: 1 << 14])
                rest = rest[1 << 14 :]
            assert example.line().startswith("by wifi0 from byte ")
            until(lambda: arriving_from(served) == {wifi})  # the server refuses a subflow once it has closed the connection
            served.sendall(rest)
        assert example.rest() == [f"{4 * len(block)} bytes, sha256 {hashlib.sha256(4 * block).hexdigest()}"]
        assert (example.status, example.errors) == (0, "")
    assert whole.read_bytes() == 4 * block


@multipath
def test_multipath_download_serves_and_gets(lab: Lab, tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.write_bytes(os.urandom(3_000_000))
    with lab.inside("server"):
        server = Example("multipath_download", "serve", lab.server.ipv4, 8091, original)
    with server:
        assert server.line() == f"serving {original}"
        lines = output("multipath_download", "get", f"http://{lab.server.ipv4}:8091/", copy)
    assert lines[0] == "by wifi0 from byte 0"
    assert copy.read_bytes() == original.read_bytes()


def test_multipath_download_says_that_it_is_plain_tcp_and_what_went_wrong(servers: Servers, tmp_path: Path) -> None:
    with Example("multipath_download", "get", f"http://{servers.host}:{ports.HTTP}/nowhere", tmp_path / "none") as example:
        assert example.rest() == ["the server or this system does not support multipath TCP: plain TCP"]
        assert example.errors.startswith("the server answered with HTTP/1.0 404")
        assert example.status == 1


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_chat_loses_nothing_and_says_nothing_twice(lab: Lab, wifi: str, eth: str, tmp_path: Path, tls: bool) -> None:
    serving, joining, environment = [], [], {}
    if tls:
        authority, pem = trustme.CA(), tmp_path / "server.pem"
        authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        authority.issue_cert(lab.server.ipv4).private_key_and_cert_chain_pem.write_to_path(str(pem))
        serving, joining, environment = ["--certificate", pem], ["--tls"], {"SSL_CERT_FILE": str(tmp_path / "authority.pem")}

    with (
        chat_server(lab, *serving) as server,
        Chatter(lab, "alice", *joining, **environment) as alice,
        Chatter(lab, "bob", *joining, **environment) as bob,
    ):
        numbers = iter(range(300))

        def both_say(count: int) -> None:
            lines = list(itertools.islice(numbers, count))
            alice.say(lines)
            bob.say(lines)

        def both_come_from(address: str) -> None:
            awaited = {f"{nick} from {address}" for nick in ("alice", "bob")}
            while awaited:
                awaited.discard(server.line())

        both_come_from(wifi)
        both_say(25)
        lab.down("wifi0")
        both_say(25)
        both_come_from(eth)
        both_say(25)
        lab.up("wifi0")  # the better path
        both_say(25)
        both_come_from(wifi)
        both_say(25)
        lab.default("eth0")
        both_say(25)
        both_come_from(eth)
        both_say(25)
        lab.down("eth0")
        both_say(25)
        both_come_from(wifi)
        both_say(25)
        lab.down("wifi0")  # now there is no path
        both_say(25)
        lab.up("eth0")
        both_come_from(eth)
        both_say(50)

        assert alice.lines(300) == said("bob", range(300))
        assert bob.lines(300) == said("alice", range(300))
        assert (alice.rest(), bob.rest()) == ([], [])
        for chatter in (alice, bob):
            ways = chatter.errors.splitlines()
            assert (chatter.status, ways[0], ways[-1]) == (0, "connected by wifi0", "now by eth0")


@pytest.fixture
def witness(lab: Lab) -> Iterator[Chatter]:
    """Bob, a chat client on the server's machine."""
    with chat_server(lab):
        with lab.inside("server"):
            bob = Chatter(lab, "bob")
        with bob:
            yield bob
            assert (bob.rest(), bob.status, bob.errors) == ([], 0, "connected by None\n")


def test_chat_whose_acknowledgements_are_lost(lab: Lab, wifi: str, witness: Chatter) -> None:
    with Chatter(lab, "alice") as alice:
        alice.say([1])
        witness.say([1])
        assert (alice.line(), witness.line()) == ("bob: 1", "alice: 1")
        lab.ip("route", "add", "blackhole", wifi, namespace="router")  # the server's packets are lost, but it still receives
        alice.say(range(2, 10))
        assert witness.lines(8) == said("alice", range(2, 10))
        witness.say(range(2, 10))
        lab.down("wifi0")
        alice.say([10])
        assert witness.line() == "alice: 10"
        assert alice.lines(8) == said("bob", range(2, 10))
        assert (alice.rest(), alice.status, alice.errors) == ([], 0, "connected by wifi0\nnow by eth0\n")


def test_chat_while_the_new_connection_is_being_made(lab: Lab, witness: Chatter) -> None:
    with Chatter(lab, "alice") as alice:
        alice.say([1])
        assert witness.line() == "alice: 1"
        lab.blackhole("eth0", True)
        with lab.tap(interface="eth0", protocol="tcp", port=CHAT) as dialling:
            lab.down("wifi0")
            until(lambda: dialling.packets)
        alice.say(range(2, 10))  # kept for the new connection, and sent again on it
        lab.blackhole("eth0", False)
        assert witness.lines(8) == said("alice", range(2, 10))
        alice.say([10])
        assert witness.line() == "alice: 10"
        assert (alice.rest(), alice.status, alice.errors) == ([], 0, "connected by wifi0\nnow by eth0\n")


def test_chat_ends_when_all_that_was_said_has_arrived(lab: Lab, witness: Chatter) -> None:
    with Chatter(lab, "alice") as alice:
        alice.say([1])
        assert witness.line() == "alice: 1"
        lab.blackhole("wifi0", True)
        with lab.tap(interface="wifi0", protocol="tcp", port=CHAT) as leaving:
            alice.say(range(2, 10))
            alice.finish()
            until(lambda: any(b"say 9" in packet.payload for packet in leaving.packets))
        lab.down("wifi0")
        assert alice.status == 0
        assert witness.lines(8) == said("alice", range(2, 10))
        assert (alice.rest(), alice.errors) == ([], "connected by wifi0\nnow by eth0\n")


@pytest.mark.parametrize("terminal", [False, True], ids=["file", "terminal"])
def test_chat_takes_its_lines_from_a_file_or_a_terminal(lab: Lab, witness: Chatter, tmp_path: Path, terminal: bool) -> None:
    lines = b"1\n" + b"x" * 1001 + b"\n2\nlast"
    if terminal:
        keyboard, source = pty.openpty()
        os.write(keyboard, lines + b"\n\x04")  # Ctrl-D
    else:
        (tmp_path / "lines").write_bytes(lines)
        source = os.open(tmp_path / "lines", os.O_RDONLY)
    with Example("chat", "join", lab.server.ipv4, CHAT, "alice", stdin=source) as alice:
        assert alice.status == 0
        assert witness.lines(3) == ["alice: 1", "alice: 2", "alice: last"]
        assert alice.rest() == []
        assert alice.errors == "connected by wifi0\nnot sent: more than 1000 bytes\n"
    os.close(source)
    if terminal:
        os.close(keyboard)


def test_chat_tells_who_has_missed_more_than_is_kept(lab: Lab) -> None:
    with chat_server(lab):
        with Chatter(lab, "bob") as bob:
            bob.say(range(1, 1101))
            assert (bob.rest(), bob.status) == ([], 0)
        with Chatter(lab, "alice") as alice:
            assert alice.lines(1000) == said("bob", range(101, 1101))
            assert (alice.rest(), alice.errors) == ([], "connected by wifi0\n100 messages are not kept any more\n")


def test_chat_ends_a_garbled_connection_and_no_other(lab: Lab, witness: Chatter) -> None:
    garbled = [
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\x00 1 \n",
        b"say 1 hello\n",
        b"login -1 somebody me\n",
        b"login 7 nobody me\n",
        b"login 0 somebody me\nsay 2 second\n",
        b"login 0 somebody me\nsay one\n",
        b"x" * 3000,
    ]
    with Chatter(lab, "alice") as alice:
        for number, lines in enumerate(garbled):
            with lab.inside("server"):
                connection = socket.create_connection((lab.server.ipv4, CHAT), PATIENCE)
            with connection, connection.makefile("rb") as answers:
                connection.sendall(lines)
                *_, last = answers
                assert last.startswith(b"error 0 "), lines
            alice.say([number])
            assert witness.line() == f"alice: {number}"
        assert (alice.rest(), alice.status) == ([], 0)


def test_chat_knows_one_connection_of_a_session(lab: Lab) -> None:
    with chat_server(lab), lab.inside("server"):
        address = (lab.server.ipv4, CHAT)
        with socket.create_connection(address, PATIENCE) as first, socket.create_connection(address, PATIENCE) as second:
            for connection in (first, second):
                connection.sendall(b"login 0 somebody me\n")
                assert connection.recv(1 << 16) == b"have 0\n"
            assert first.recv(1 << 16) == b""
            second.sendall(b"login 0 somebody me\nsay 1 hello\n")
            assert second.recv(1 << 16) == b"have 1\n"


@pytest.mark.parametrize("away", [[], ["wifi0"], ["eth0", "wifi0"]])
def test_chat_ends_by_ctrl_c(lab: Lab, wifi: str, away: list[str]) -> None:
    with chat_server(lab) as server, Chatter(lab, "alice", "--patience", 1000) as alice:
        assert server.line() == f"alice from {wifi}"
        if away:
            lab.blackhole("eth0", True)
        for name in away:
            lab.down(name)
        alice.say([1])
        assert (alice.interrupt(), alice.status, alice.errors) == ([], 0, "connected by wifi0\n")


def test_chat_says_in_one_line_that_it_could_not_come_back(lab: Lab, wifi: str) -> None:
    with chat_server(lab) as server, Chatter(lab, "alice", "--patience", 0.5) as alice:
        assert server.line() == f"alice from {wifi}"
        lab.blackhole("eth0", True)
        lab.down("wifi0")
        assert alice.status == 1
        alice.rest()
        _, lost = alice.errors.splitlines()
        assert lost.startswith(f"chat: the connection to {lab.server.ipv4} over wifi0 was lost")


def test_chat_says_in_one_line_that_the_server_has_ended(lab: Lab, wifi: str) -> None:
    with chat_server(lab) as server, Chatter(lab, "alice") as alice:
        assert server.line() == f"alice from {wifi}"
        assert (server.interrupt(), server.status, server.errors) == ([], 0, "")
        assert alice.status == 1
        assert (alice.rest(), alice.errors) == ([], "connected by wifi0\nchat: the server has closed the connection\n")


def test_chat_does_not_go_on_with_a_server_that_has_forgotten_it(lab: Lab) -> None:
    with chat_server(lab) as server, Chatter(lab, "alice") as alice:
        with Chatter(lab, "bob") as bob:
            bob.say([1])
            assert alice.line() == "bob: 1"
            assert (bob.rest(), bob.status) == ([], 0)
        lab.blackhole("wifi0", True)
        server.interrupt()
        with chat_server(lab):
            lab.down("wifi0")
            assert alice.status == 1
            assert alice.rest() == []
            assert alice.errors.endswith(": this session is not known here any more\n")


def test_each_example_says_in_three_lines_when_to_use_it() -> None:
    for path in EXAMPLES.glob("*.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert len([line for line in docstring.splitlines() if line]) >= 3, path.name
