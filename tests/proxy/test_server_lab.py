"""The proxy as a program, and curl as its client, which does not know bindsock."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.servers import NAME, Servers, content
from tests.integrations.tunnel import nothing_through_the_tunnel

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here"),
]

Curl = Callable[..., subprocess.CompletedProcess[bytes]]


@contextlib.contextmanager
def running_proxy(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run ``bindsock proxy``. Yields its process and the addresses on which it listens."""
    command = [sys.executable, "-W", "error", "-m", "bindsock", "proxy", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as proxy:
        try:
            assert proxy.stdout is not None
            addresses = []
            while match := re.fullmatch(r"listening on (\S+) port (\d+)\n", line := proxy.stdout.readline()):
                addresses.append(f"{match[1]}:{match[2]}")
            assert line == "connections leave by wifi0 now\n", proxy.communicate(timeout=20)
            yield proxy, addresses
        finally:
            if proxy.poll() is None:
                proxy.send_signal(signal.SIGTERM)
                proxy.communicate(timeout=20)


CURL = ("curl", "--silent", "--show-error", "--max-time", "20", "--noproxy", "")


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CURL, *arguments], capture_output=True, check=False)


@pytest.mark.parametrize(
    ("scheme", "url"),
    [
        ("socks5h", f"http://{{host}}:{ports.HTTP}/"),
        ("socks5h", f"https://{{host}}:{ports.HTTPS}/"),
        ("socks5", f"http://{{host}}:{ports.HTTP}/"),
        ("http", f"http://{{host}}:{ports.HTTP}/"),
        ("http", f"https://{{host}}:{ports.HTTPS}/"),
    ],
)
def test_what_curl_asks_for_leaves_beneath_the_vpn(lab: Lab, servers: Servers, tmp_path: Path, scheme: str, url: str) -> None:
    authority = tmp_path / "authority.pem"
    authority.write_bytes(servers.authority_pem)
    with nothing_through_the_tunnel(lab), running_proxy("--listen", "127.0.0.1:0") as (proxy, (address,)):
        done = curl("--proxy", f"{scheme}://{address}", "--cacert", str(authority), url.format(host=servers.host))
        assert done.stderr == b""
        assert done.stdout.decode() == lab.address("wifi0")
    assert proxy.returncode == 0


def test_the_log_says_who_went_where_by_which_interface(lab: Lab, servers: Servers) -> None:
    with running_proxy("--listen", "127.0.0.1:0") as (proxy, (address,)):
        assert curl("--proxy", f"http://{address}", f"http://{servers.host}:{ports.HTTP}/").returncode == 0
        assert proxy.stderr is not None
        begun, ended = proxy.stderr.readline(), proxy.stderr.readline()  # curl may end before the proxy reads the end of file
        proxy.send_signal(signal.SIGTERM)
        assert proxy.stderr.read() == ""
    assert re.search(rf"#1 127\.0\.0\.1:\d+ -> {servers.host}:{ports.HTTP} \(http\) by wifi0$", begun)
    assert re.search(r"\(http\) done, \d+ bytes up, \d+ down, [\d.]+ s$", ended)


EAGER = """\
import os, signal, sys
from bindsock.cli import main, proxy
say = proxy._say_where_to
def say_and_end(transports):
    say(transports)
    os.kill(os.getpid(), signal.SIGTERM)
proxy._say_where_to = say_and_end
sys.exit(main(sys.argv[1:]))
"""
"""The proxy, which is ended as soon as it has said where it listens."""


def test_whoever_ends_it_as_soon_as_it_listens_sees_it_end_in_order(lab: Lab) -> None:
    command = [sys.executable, "-c", EAGER, "proxy", "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_large_upload_and_a_large_download_arrive_whole(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    size = 5_000_000
    upload = tmp_path / "upload"
    upload.write_bytes(content(size))
    with running_proxy("--listen", "127.0.0.1:0", "--quiet") as (_, (address,)):
        done = curl("--proxy", f"socks5h://{address}", f"http://{servers.host}:{ports.HTTP}/download/{size}")
        assert done.stdout == content(size)
        done = curl(
            "--proxy",
            f"http://{address}",
            "--data-binary",
            f"@{upload}",
            "--dump-header",
            "-",
            f"http://{servers.host}:{ports.HTTP}/",
        )
        assert f"X-Received: {size}".encode() in done.stdout


def test_after_the_uplink_is_gone_the_next_request_leaves_by_the_other(lab: Lab, servers: Servers) -> None:
    with running_proxy("--listen", "127.0.0.1:0", "--quiet") as (_, (address,)):
        url = f"http://{servers.host}:{ports.HTTP}/"
        assert curl("--proxy", f"socks5h://{address}", url).stdout.decode() == lab.address("wifi0")
        lab.down("wifi0")
        assert curl("--proxy", f"socks5h://{address}", url).stdout.decode() == lab.address("eth0")


def test_a_connection_whose_uplink_goes_is_reset_and_not_ended_as_if_all_had_come(lab: Lab, servers: Servers) -> None:
    with running_proxy("--listen", "127.0.0.1:0", "--quiet") as (_, (address,)):
        host, port = address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(f"CONNECT {lab.server.ipv4}:{lab.server.tcp_port} HTTP/1.1\r\n\r\n".encode())
            received = b""
            while b"hello" not in received or not received.endswith(b"\n"):
                received += client.recv(1000)
            lab.down("wifi0")
            with pytest.raises(ConnectionResetError):
                client.recv(1000)


def test_credentials_are_asked_of_everybody(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("# who may\nalice:se:cret\n")
    url = f"http://{servers.host}:{ports.HTTP}/"
    with running_proxy("--listen", "127.0.0.1:0", "--credentials", str(users), "--quiet") as (_, (address,)):
        for scheme in ("http", "socks5h"):
            assert curl("--proxy", f"{scheme}://{address}", "--proxy-user", "alice:se:cret", url).stdout.decode() == lab.address(
                "wifi0"
            )
        refused = curl("--proxy", f"http://{address}", "--proxy-user", "alice:wrong", "--dump-header", "-", url)
        assert refused.stdout.startswith(b"HTTP/1.1 407 ")
        assert curl("--proxy", f"socks5h://{address}", "--proxy-user", "alice:wrong", url).returncode != 0
        assert curl("--proxy", f"socks5h://{address}", url).returncode != 0


def test_others_need_credentials_and_do_not_reach_the_proxys_own_machine(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "bindsock", "proxy", "--listen", f"{lab.address('wifi0')}:0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "needs credentials" in refused.stderr
    users = tmp_path / "users"
    users.write_text("alice:secret\n")
    lab.vpn_down()  # the proxy's answers to another host would go into the tunnel
    listen = ("--listen", f"{lab.address('wifi0')}:0", "--listen", "127.0.0.1:0", "--credentials", str(users), "--quiet")
    with running_proxy(*listen) as (_, (address, loopback)), socket.create_server(("127.0.0.1", 0)) as private:
        port = private.getsockname()[1]
        with lab.inside("server"):
            for target in (
                f"127.0.0.1:{port}",
                f"localhost:{port}",
                f"{lab.address('eth0')}:{port}",
                f"[::ffff:127.0.0.1]:{port}",
            ):
                done = curl("--proxy", f"http://alice:secret@{address}", "--dump-header", "-", f"http://{target}/")
                assert done.stdout.startswith(b"HTTP/1.1 403 "), target
        private.setblocking(False)
        with pytest.raises(BlockingIOError):
            private.accept()
        private.settimeout(20)
        asking = [*CURL, "--proxy", f"http://alice:secret@{loopback}", f"http://127.0.0.1:{port}/"]
        with subprocess.Popen(asking, stderr=subprocess.DEVNULL):
            private.accept()[0].close()


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_a_target_that_cannot_be_reached_is_reported_and_logged(lab: Lab, servers: Servers, scheme: str) -> None:
    with running_proxy("--listen", "127.0.0.1:0") as (proxy, (address,)):
        done = curl("--proxy", f"{scheme}://{address}", "--dump-header", "-", f"http://{servers.host}:1/")
        assert done.stdout.startswith(b"HTTP/1.1 502 ") if scheme == "http" else done.returncode == 97
        lab.down("wifi0")
        lab.down("eth0")
        done = curl("--proxy", f"{scheme}://{address}", "--dump-header", "-", f"http://{servers.host}:{ports.HTTP}/")
        assert done.stdout.startswith(b"HTTP/1.1 503 ") if scheme == "http" else done.returncode == 97
        proxy.send_signal(signal.SIGTERM)
        _, said = proxy.communicate(timeout=20)
    refused, unreachable = said.splitlines()
    assert "failed:" in refused
    assert "no interface may be used" in unreachable


def test_names_are_resolved_beneath_the_vpn_if_so_wanted(lab: Lab, servers: Servers) -> None:
    with running_proxy("--listen", "127.0.0.1:0", "--resolver", "interface", "--dns-server", servers.host) as (_, (address,)):
        done = curl("--proxy", f"socks5h://{address}", f"http://{NAME}:{ports.HTTP}/")
        assert done.stdout.decode() == lab.address("wifi0")
    assert set(servers.sources["dns"]) == {lab.address("wifi0")}
