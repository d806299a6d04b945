"""The proxy beside other SOCKS5 servers: throughput, connections a second, and the first byte of a server that speaks first."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bindsock.testing.lab import Lab

from .figures import Row, compared, skipped
from .rounds import in_turn
from .setting import FEW_ROUTES, Size, laboratory

_MEGABYTES = 64
_CONNECTIONS = 200
_AT_ONCE = 20
_FIRST_BYTES = 20
_PATIENCE = 20.0
_SOCKS = "/usr/sbin:/usr/local/sbin:/usr/bin:/bin"
_DANTE = """\
logoutput: {directory}/log
internal: 127.0.0.1 port = {port}
external: {uplink}
socksmethod: none
clientmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
"""
_PORTS = {"bindsock": 10801, "microsocks": 10802, "dante": 10803}


def _commands(directory: str) -> dict[str, list[str] | str]:
    """The command of each server, or the reason why it cannot be started."""
    path = f"{os.environ.get('PATH', '')}:{_SOCKS}"
    bindsock = [sys.executable, "-m", "bindsock", "proxy", "--quiet", "--listen", f"127.0.0.1:{_PORTS['bindsock']}"]
    commands: dict[str, list[str] | str] = {"bindsock": bindsock}
    microsocks = shutil.which("microsocks", path=path)
    missing = "{} is not installed (Debian: apt-get install {})"
    commands["microsocks"] = (
        [microsocks, "-i", "127.0.0.1", "-p", str(_PORTS["microsocks"])]
        if microsocks is not None
        else missing.format("microsocks", "microsocks")
    )
    dante = shutil.which("danted", path=path)
    if dante is None:
        commands["dante"] = missing.format("dante", "dante-server")
    else:
        configuration = Path(directory, "danted.conf")
        configuration.write_text(_DANTE.format(directory=directory, port=_PORTS["dante"], uplink="wifi0"), encoding="ascii")
        commands["dante"] = [dante, "-f", str(configuration), "-p", f"{directory}/danted.pid"]
    return commands


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    """Run a server; the block begins when it listens."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                break
            except ConnectionRefusedError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} does not listen on port {port}") from None
                time.sleep(0.02)
        yield
    finally:
        # Dante has several processes; all belong to the session that was made for it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def _source(lab: Lab) -> Iterator[tuple[str, int]]:
    """A server in a separate process that sends megabytes as fast as it can to clients that send something."""
    with lab.inside("server"):
        listener = socket.create_server((lab.server.ipv4, 0))
        process = os.fork()
        if process == 0:
            try:
                _serve(listener)
            finally:
                os._exit(0)
    try:
        yield listener.getsockname()
    finally:
        listener.close()
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def _serve(listener: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    block = bytes(1 << 20)

    def send(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.recv(100)
            for _ in range(_MEGABYTES):
                sock.sendall(block)

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=send, args=(sock,), daemon=True).start()


def _request(destination: tuple[str, int]) -> bytes:
    host, port = destination
    return b"\5\1\0\1" + socket.inet_aton(host) + struct.pack("!H", port)


def _through(proxy: int, destination: tuple[str, int]) -> socket.socket:
    """Connect through a SOCKS5 server, and read its answer."""
    sock = socket.create_connection(("127.0.0.1", proxy), _PATIENCE)
    sock.sendall(b"\5\1\0")
    _expect(_exactly(sock, 2), b"\5\0")
    sock.sendall(_request(destination))
    _expect(_exactly(sock, 10)[:2], b"\5\0")
    return sock


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise RuntimeError("the SOCKS5 server has closed the connection")
        data += more
    return data


def _expect(answer: bytes, expected: bytes) -> None:
    if answer != expected:
        raise RuntimeError(f"the SOCKS5 server answers {answer.hex()} instead of {expected.hex()}")


def _throughput(proxy: int, source: tuple[str, int]) -> float:
    """Megabytes a second of one download."""
    with _through(proxy, source) as sock:
        buffer = bytearray(1 << 18)
        begun = time.perf_counter()
        sock.sendall(b"send\n")
        received = 0
        while received < _MEGABYTES << 20:
            count = sock.recv_into(buffer)
            if not count:
                raise RuntimeError(f"the download ended after {received} bytes")
            received += count
        return _MEGABYTES / (time.perf_counter() - begun)


def _first_byte(proxy: int, destination: tuple[str, int]) -> float:
    """Seconds from the client's connect to the first byte of a server that speaks first."""
    taken = []
    for _ in range(_FIRST_BYTES):
        begun = time.perf_counter()
        with _through(proxy, destination) as sock:
            sock.recv(1)
            taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 2]


def _rate(proxy: int, destination: tuple[str, int]) -> float:
    """Connections a second, several at the same time, each until the first byte of a server that speaks first."""
    request = _request(destination)

    async def connect(waiting: asyncio.Semaphore) -> None:
        async with waiting:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
            writer.write(b"\5\1\0")
            _expect(await reader.readexactly(2), b"\5\0")
            writer.write(request)
            _expect((await reader.readexactly(10))[:2], b"\5\0")
            await reader.readexactly(1)
            writer.transport.abort()

    async def connect_all() -> float:
        waiting = asyncio.Semaphore(_AT_ONCE)
        begun = time.perf_counter()
        async with asyncio.timeout(_PATIENCE):
            await asyncio.gather(*(connect(waiting) for _ in range(_CONNECTIONS)))
        return _CONNECTIONS / (time.perf_counter() - begun)

    return asyncio.run(connect_all())


def measure(size: Size) -> Iterator[Row]:
    with (
        tempfile.TemporaryDirectory() as directory,
        laboratory(FEW_ROUTES) as lab,
        lab.inside(),
        _source(lab) as source,
        contextlib.ExitStack() as stack,
    ):
        os.chmod(directory, 0o755)
        running = []
        reasons = {}
        for name, command in _commands(directory).items():
            if isinstance(command, str):
                reasons[name] = command
            else:
                stack.enter_context(_running(command, _PORTS[name]))
                running.append(name)
        greeter = (lab.server.ipv4, lab.server.tcp_port)
        kinds: list[tuple[str, str, float, Callable[[int], float], bool]] = [
            ("a download through the proxy", "MB/s", 1.0, lambda port: _throughput(port, source), True),
            ("connections through the proxy", "1/s", 1.0, lambda port: _rate(port, greeter), True),
            ("the first byte of a server that speaks first", "ms", 1e3, lambda port: _first_byte(port, greeter), False),
        ]
        for title, unit, scale, measure_kind, rate in kinds:
            sides = {name: functools.partial(measure_kind, _PORTS[name]) for name in running}
            costs = in_turn(sides, size.slow_rounds)
            for name in running[1:]:
                yield compared(title, unit, costs["bindsock"], name, costs[name], scale=scale, rate=rate)
        for name, reason in reasons.items():
            yield skipped(f"the proxy beside {name}", reason)
