"""gRPC's channels with a VPN, on uplinks that come and go, and a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bindsock
import bindsock.integrations.grpc
from bindsock.integrations.grpc import Endpoint, split_target
from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.grpc_server import grpc_server
from tests.integrations.servers import Servers
from tests.integrations.test_http_lab import bring_up
from tests.integrations.tunnel import nothing_through_the_tunnel

lab_test = pytest.mark.lab


class Client:
    """A running program of :mod:`tests.integrations.grpc_client`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __iter__(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)

    def until(self, name: str, value: str) -> list[dict[str, Any]]:
        """The observations up to the first one with this value."""
        told = []
        for facts in self:
            told.append(facts)
            if facts.get(name) == value:
                return told
        raise AssertionError(f"it ended after {told}")


@contextlib.contextmanager
def client(program: str, *arguments: str, **environment: str) -> Iterator[Client]:
    command = [sys.executable, "-W", "error", "-m", "tests.integrations.grpc_client", program, *arguments]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, **environment}) as process:
        try:
            yield Client(process)
        finally:
            process.kill()


@lab_test
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"no_proxy": "*", "no_grpc_proxy": "*"},
        {"grpc_proxy": "http://192.0.2.1:3128", "http_proxy": "http://192.0.2.1:3128", "https_proxy": "http://192.0.2.1:3128"},
        {"GRPC_ADDRESS_HTTP_PROXY": "192.0.2.1:3128", "GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES": "127.0.0.0/8"},
    ],
    ids=["plain", "no_proxy", "http_proxy", "address_http_proxy"],
)
def test_every_kind_of_call_leaves_beneath_the_vpn_whatever_proxies_the_environment_names(
    lab: Lab, servers: Servers, environment: dict[str, str]
) -> None:
    with grpc_server(lab, servers), nothing_through_the_tunnel(lab):
        with client("calls", servers.host, servers.authority_pem.decode(), **environment) as program:
            insecure, secure, second, end = program
        for told in (insecure, secure):
            assert told["source"] == lab.address("wifi0")
            assert told["said"] == "hello"
            assert told["talk"] == ["ONE", "TWO", "THREE"]
            assert told["total"] == "11"
            assert told["counted"] == ["0", "1", "2"]
            assert told["deadline"] == "DEADLINE_EXCEEDED"
        assert second["answer"] == "the second server"
        assert end["tasks"] == []


@lab_test
@pytest.mark.timeout(180)
def test_a_stream_whose_interface_goes_ends_at_once_and_grpc_reconnects_by_the_other(lab: Lab, servers: Servers) -> None:
    with grpc_server(lab, servers), nothing_through_the_tunnel(lab), client("follow", servers.host) as program:
        program.until("source", lab.address("wifi0"))
        for number in range(6):
            away, other = ("wifi0", "eth0") if number % 2 == 0 else ("eth0", "wifi0")
            bring_up(lab, other)
            lab.down(away)
            told = program.until("source", lab.address(other))
            assert told[0]["broken"] == "UNAVAILABLE"
            assert told[0]["silent"] < 10  # if nobody ended the connection, it would be a quarter of an hour


@lab_test
def test_without_an_interface_a_call_fails_and_goes_nowhere(lab: Lab, servers: Servers) -> None:
    lab.down("wifi0")
    lab.down("eth0")
    with nothing_through_the_tunnel(lab), client("refused", servers.host) as program:
        (told,) = program
    assert told["code"] == "UNAVAILABLE"
    assert "503" in told["details"]


@lab_test
def test_a_channel_that_nobody_closes_ends_with_the_loop(lab: Lab, servers: Servers) -> None:
    with grpc_server(lab, servers):
        command = [sys.executable, "-W", "error", "-m", "tests.integrations.grpc_client", "forgetful", servers.host]
        run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60, check=True)
    assert json.loads(run.stdout)["source"] == lab.address("wifi0")
    assert run.stderr == ""


@lab_test
def test_what_stays_on_this_machine_is_connected_directly(lab: Lab) -> None:
    lab.vpn_up("metric")
    with client("local", grpc_proxy="http://192.0.2.1:3128", no_proxy="") as program:
        told = list(program)
    assert [facts["answer"] for facts in told] == ["local"] * 3
    assert not any(facts["led"] for facts in told)


@lab_test
def test_others_cannot_use_the_endpoint(lab: Lab, servers: Servers) -> None:
    async def ask(endpoint: Endpoint, header: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(endpoint.target.rpartition(":")[2]))
        writer.write(f"CONNECT {servers.host}:{ports.SINK} HTTP/1.1\r\n{header}\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer

    async def main() -> None:
        async with bindsock.TransportFactory() as factory:
            endpoint = Endpoint(factory)
            endpoint.join()
            headers = dict(endpoint.options(servers.host, ports.SINK))["grpc.http_connect_headers"]
            assert (await ask(endpoint, "")).startswith(b"HTTP/1.1 407")
            assert (await ask(endpoint, "Proxy-Authorization: Basic Z3JwYzpndWVzcw==\r\n")).startswith(b"HTTP/1.1 407")
            assert "sink" not in servers.sources
            assert (await ask(endpoint, headers.replace(":", ": ", 1) + "\r\n")).startswith(b"HTTP/1.1 200")
            assert servers.wait_for("sink") == {lab.address("wifi0")}
            endpoint.leave()
            await endpoint.wait_closed()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("example.com:50051", ("example.com:50051", "example.com", 50051)),
        ("example.com", ("example.com", "example.com", 443)),
        ("dns:///example.com:80", ("example.com:80", "example.com", 80)),
        ("dns:example.com:80", ("example.com:80", "example.com", 80)),
        ("192.0.2.1:1", ("192.0.2.1:1", "192.0.2.1", 1)),
        ("ipv4:192.0.2.1:1", ("192.0.2.1:1", "192.0.2.1", 1)),
        ("[2001:db8::1]:1", ("[2001:db8::1]:1", "2001:db8::1", 1)),
        ("ipv6:[2001:db8::1]:1", ("[2001:db8::1]:1", "2001:db8::1", 1)),
        ("ipv6:2001:db8::1", ("2001:db8::1", "2001:db8::1", 443)),
        ("unix:/run/socket", None),
        ("unix:///run/socket", None),
        ("unix-abstract:name", None),
        ("vsock:1:2", None),
    ],
)
def test_a_target_is_read_as_grpc_reads_it(target: str, expected: object) -> None:
    assert split_target(target) == expected


@pytest.mark.parametrize(
    "target",
    ["xds:///service", "ipv4:192.0.2.1:1,192.0.2.2:1", "dns://192.0.2.53/example.com", "dns:///:80", "example.com:http", ""],
)
def test_a_target_that_cannot_be_led_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        split_target(target)


@pytest.mark.parametrize(
    "option",
    [
        ("grpc.http_proxy", "http://proxy:3128"),
        ("grpc.enable_http_proxy", 1),
        ("grpc.http_connect_server", "example.com:1"),
        ("grpc.address_http_proxy", "192.0.2.1:3128"),
    ],
)
async def test_an_option_that_leads_elsewhere_is_refused(option: tuple[str, object]) -> None:
    with pytest.raises(ValueError, match=option[0]):
        bindsock.integrations.grpc.insecure_channel("example.com:50051", options=[option])


def test_a_channel_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError):
        bindsock.integrations.grpc.insecure_channel("example.com:50051")
