"""Published programs without bindsock, unmodified, with a VPN, on uplinks that come and go five times."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.grpc_server import PORT, SERVICE, grpc_server
from tests.integrations.servers import Servers
from tests.integrations.test_http_lab import bring_up
from tests.integrations.tunnel import nothing_through_the_tunnel

from .programs import PATIENCE, PYTHON, environment, run, running

pytestmark = [pytest.mark.lab, pytest.mark.soak, pytest.mark.timeout(240)]

SWITCHES = 5
COMMANDS = Path(sys.executable).parent
PROXY_PORT = 8099
UNREACHABLE = ("(from versions: none)", "connection broken", "Read timed out")
"""pip's messages if a package index cannot be reached, or has no source distributions."""
WITH_HOSTS = ("unshare", "--mount", "sh", "-c", 'mount --bind "$1" /etc/hosts && shift && exec "$@"', "sh")
"""A command that runs another command with its own ``/etc/hosts``. Its arguments are the file and the other command."""
PROTO = f"""
    syntax = "proto3";
    package {SERVICE.partition(".")[0]};
    message Nothing {{}}
    message Source {{ string address = 1; }}
    service {SERVICE.partition(".")[2]} {{ rpc WhenceMessage (Nothing) returns (Source); }}
"""
Look = Callable[[], set[str]]
"""A function that returns the program's source addresses since its last call."""


def switches(lab: Lab) -> Iterator[str]:
    """The effective interface: at first, and after each switch."""
    current, other = "wifi0", "eth0"
    yield current
    for _ in range(SWITCHES):
        lab.down(current)
        current, other = other, current
        yield current
        # Even if the other interface is better, connections stay on a working one until it is gone.
        bring_up(lab, other)
        lab.metric(other, 900)


def survives(lab: Lab, look: Look) -> None:
    """Check that the program works over each interface in turn, and that none of its packets goes into the tunnel."""
    with nothing_through_the_tunnel(lab):
        for interface in switches(lab):
            seen: set[str] = set()
            deadline = time.monotonic() + 60
            while lab.address(interface) not in seen:
                assert time.monotonic() < deadline, f"nobody came by {interface}, but from {seen}"
                seen |= look()


def once(servers: Servers, name: str, *command: str) -> Look:
    """Start the program again for each look. It must succeed, or fail with an exit status while the uplinks change."""

    def look() -> set[str]:
        servers.sources.pop(name, None)
        done = run(*command, options=("--quiet", "--"))
        return servers.wait_for(name) if done.returncode == 0 else set()

    return look


def test_a_uvicorn_application_that_asks_others_by_httpx(lab: Lab, servers: Servers) -> None:
    pytest.importorskip("asgi_proxy")
    arguments = ["-p", str(PROXY_PORT), "--host", "127.0.0.1", f"http://{servers.host}:{ports.HTTP}"]

    def look() -> set[str]:
        assert program.process.poll() is None, program.errors()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{PROXY_PORT}/", timeout=20) as response:
                return {response.read().decode()}
        except urllib.error.HTTPError as error:  # its uplink went down during the request
            error.close()
        except OSError:  # the program does not listen yet
            time.sleep(0.05)
        return set()

    with running(PYTHON, "-m", "asgi_proxy", *arguments) as program:
        survives(lab, look)


@pytest.fixture(scope="module")
def echobot(tmp_path_factory: pytest.TempPathFactory) -> str:
    """python-telegram-bot's own example, from the archive of the installed version. Skips the test if pip cannot get it.

    It is downloaded before the laboratory is made: a package index cannot be reached from there.
    """
    pytest.importorskip("pip")
    directory = tmp_path_factory.mktemp("python-telegram-bot")
    requirement = f"python-telegram-bot=={metadata.version('python-telegram-bot')}"
    options = [
        "--no-deps",
        "--no-binary",
        "python-telegram-bot",
        "--disable-pip-version-check",
        "--retries",
        "1",
        "--timeout",
        "20",
    ]
    done = subprocess.run(
        [PYTHON, "-m", "pip", "download", *options, "--dest", str(directory), requirement],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode != 0 and any(sign in done.stderr for sign in UNREACHABLE):
        pytest.skip(f"pip cannot get python-telegram-bot's archive: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (archive,) = directory.iterdir()
    shutil.unpack_archive(archive, directory, filter="data")
    (program,) = directory.glob("*/examples/echobot.py")
    return str(program)


def test_a_telegram_poller(echobot: str, lab: Lab, servers: Servers, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{servers.host} {ports.TELEGRAM}\n")
    trusting = environment(SSL_CERT_FILE=str(servers.authority_file))

    def look() -> set[str]:
        assert program.process.poll() is None, program.errors()
        seen = servers.sources.pop("telegram", None)
        if seen is None:  # the program waits after an error, longer each time
            time.sleep(0.05)
        return set(seen or ())

    with running(PYTHON, echobot, prefix=(*WITH_HOSTS, str(hosts)), env=trusting) as program:
        survives(lab, look)


def test_a_paho_publisher(lab: Lab, servers: Servers) -> None:
    pytest.importorskip("mqtt_cli")
    command = [
        str(COMMANDS / "mqtt"),
        "--host",
        servers.host,
        "--port",
        str(ports.MQTT),
        "publish",
        "--topic",
        "lab",
        "--message",
        "on",
    ]
    survives(lab, once(servers, "mqtt", *command))


def test_httpie_which_uses_requests(lab: Lab, servers: Servers) -> None:
    pytest.importorskip("httpie")
    url = f"http://{servers.host}:{ports.HTTP}/"
    survives(lab, once(servers, "http", str(COMMANDS / "http"), "--ignore-stdin", "--check-status", "GET", url))


def test_a_grpc_client(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    pytest.importorskip("protodial")
    proto = tmp_path / "echo.proto"
    proto.write_text(PROTO)
    command = [
        str(COMMANDS / "protodial"), "--plaintext", "--proto-path", str(tmp_path), "--proto", str(proto),
        "-d", "{}", f"grpc://{servers.host}:{PORT}/{SERVICE}/WhenceMessage",
    ]  # fmt: skip

    def look() -> set[str]:
        done = run(*command, options=("--quiet", "--"))
        return {json.loads(done.stdout)["address"]} if done.returncode == 0 else set()

    with grpc_server(lab, servers):
        survives(lab, look)
