"""requests, urllib3, http.client, smtplib, paho and aiomqtt with a VPN, on uplinks that come and go."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiomqtt
import pytest
import requests
import urllib3
from paho.mqtt.enums import CallbackAPIVersion

import bindsock
import bindsock.integrations.aiomqtt
import bindsock.integrations.paho
import bindsock.integrations.requests
import bindsock.integrations.stdlib
import bindsock.integrations.urllib3
from bindsock.blocking import BlockingConnector
from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.conftest import servers
from tests.integrations.servers import Servers
from tests.integrations.test_http_lab import bring_up
from tests.integrations.tunnel import nothing_through_the_tunnel

from .test_blocking_lab import NO_NAME

__all__ = ["servers"]

pytestmark = pytest.mark.lab

PATIENCE = 20.0


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run an asynchronous function on a loop that follows blocking connections."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main()

    with asyncio.Runner(loop_factory=bindsock.EventLoop) as runner:
        runner.run(bounded())


def session(servers: Servers, **options: Any) -> requests.Session:
    made = requests.Session()
    made.trust_env = False
    for scheme in ("http://", "https://"):
        made.mount(scheme, bindsock.integrations.requests.HTTPAdapter(**options))
    made.verify = str(servers.authority_file)
    return made


def urls(servers: Servers) -> list[str]:
    return [f"http://{servers.host}:{ports.HTTP}/", f"https://{servers.host}:{ports.HTTPS}/"]


def test_requests_leave_beneath_the_vpn(lab: Lab, servers: Servers) -> None:
    with nothing_through_the_tunnel(lab):
        with session(servers) as client:
            for url in urls(servers) * 2:
                assert client.get(url, timeout=PATIENCE).text == lab.address("wifi0")
        with session(servers, interface="eth0") as client:
            for url in urls(servers):
                assert client.get(url, timeout=PATIENCE).text == lab.address("eth0")
            copied: requests.adapters.HTTPAdapter = pickle.loads(pickle.dumps(client.get_adapter("http://")))
            client.mount("http://", copied)
            assert client.get(urls(servers)[0], timeout=PATIENCE).text == lab.address("eth0")


def test_requests_errors_are_its_own(lab: Lab, servers: Servers) -> None:
    with session(servers) as client:
        with pytest.raises(requests.ConnectionError):
            client.get(f"http://{servers.host}:1/", timeout=PATIENCE)
        lab.blackhole("wifi0", True)  # of a host that is not there, the router would tell after three seconds
        with pytest.raises(requests.ConnectTimeout):
            client.get(f"http://{servers.host}:1/", timeout=0.2)
        lab.blackhole("wifi0", False)
        with pytest.raises(requests.ConnectionError):
            client.get(f"http://{NO_NAME}/", timeout=PATIENCE)
        with pytest.raises(ValueError, match="PySocks"):
            client.get(urls(servers)[0], timeout=PATIENCE, proxies={"http": "socks5://127.0.0.1:1080"})
        lab.down("wifi0")
        lab.down("eth0")
        with nothing_through_the_tunnel(lab), pytest.raises(requests.ConnectionError, match="no interface may be used"):
            client.get(urls(servers)[0], timeout=PATIENCE)


def test_a_request_whose_interface_goes_fails_and_the_next_leaves_by_the_other(lab: Lab, servers: Servers) -> None:
    async def main() -> None:
        with session(servers) as client, ThreadPoolExecutor() as pool:
            loop = asyncio.get_running_loop()
            url = f"http://{servers.host}:{ports.HTTP}/slow"
            asking = loop.run_in_executor(pool, lambda: client.get(url, timeout=PATIENCE * 2))
            while not servers.waiting or not bindsock.statistics().tracked:
                await asyncio.sleep(0.01)
            lab.down("wifi0")
            with pytest.raises(requests.ConnectionError):
                await asking
            for address in urls(servers):
                assert (await asyncio.to_thread(client.get, address, timeout=PATIENCE)).text == lab.address("eth0")

    with nothing_through_the_tunnel(lab):
        run(main)


def test_pooled_connections_whose_path_is_gone_are_not_used_again(lab: Lab, servers: Servers) -> None:
    async def main() -> None:
        with bindsock.integrations.urllib3.PoolManager(ca_certs=str(servers.authority_file), retries=False) as pool:
            for url in urls(servers):
                assert pool.request("GET", url, timeout=PATIENCE).data.decode() == lab.address("wifi0")
            while bindsock.statistics().tracked < 2:
                await asyncio.sleep(0.01)
            lab.down("wifi0")
            while bindsock.statistics().ended < 2:
                await asyncio.sleep(0.01)
            for url in urls(servers):
                assert pool.request("GET", url, timeout=PATIENCE).data.decode() == lab.address("eth0")
            with pytest.raises(urllib3.exceptions.NewConnectionError):
                pool.request("GET", f"http://{servers.host}:1/")

    with nothing_through_the_tunnel(lab):
        run(main)


def test_the_standard_librarys_clients_leave_beneath_the_vpn(lab: Lab, servers: Servers) -> None:
    clients = (
        bindsock.integrations.stdlib.HTTPConnection(servers.host, ports.HTTP, timeout=PATIENCE),
        bindsock.integrations.stdlib.HTTPSConnection(servers.host, ports.HTTPS, timeout=PATIENCE, context=servers.context),
    )
    with nothing_through_the_tunnel(lab):
        for client in clients:
            client.request("GET", "/")
            assert client.getresponse().read().decode() == lab.address("wifi0")
            client.close()
        with bindsock.integrations.stdlib.SMTP(servers.host, ports.SMTP, timeout=PATIENCE) as mail:
            assert mail.noop()[0] == 250
        with bindsock.integrations.stdlib.SMTP(
            servers.host, ports.SMTP, timeout=PATIENCE, connector=BlockingConnector(interface="eth0")
        ) as mail:
            assert mail.noop()[0] == 250
        with bindsock.integrations.stdlib.SMTP_SSL(
            servers.host, ports.SMTP_TLS, timeout=PATIENCE, context=servers.context
        ) as mail:
            assert mail.noop()[0] == 250
    assert servers.sources["smtp"] == [lab.address(name) for name in ("wifi0", "eth0", "wifi0")]


@pytest.mark.parametrize("tls", [False, True])
def test_paho_reconnects_by_the_other_uplink(lab: Lab, servers: Servers, tls: bool) -> None:
    connected: list[threading.Event] = [threading.Event() for _ in range(5)]
    count = 0

    def on_connect(*arguments: Any) -> None:
        nonlocal count
        connected[count].set()
        count += 1

    async def main() -> None:
        client = bindsock.integrations.paho.Client(CallbackAPIVersion.VERSION2)
        client.reconnect_delay_set(min_delay=1, max_delay=1)
        client.on_connect = on_connect
        if tls:
            client.tls_set_context(servers.context)
        await asyncio.to_thread(client.connect, servers.host, ports.MQTT_TLS if tls else ports.MQTT)
        client.loop_start()
        try:
            assert await asyncio.to_thread(connected[0].wait, PATIENCE)
            for number in range(2):
                away, other = ("wifi0", "eth0") if number % 2 == 0 else ("eth0", "wifi0")
                await asyncio.to_thread(bring_up, lab, other)
                while not bindsock.statistics().tracked:
                    await asyncio.sleep(0.01)
                lab.down(away)
                assert await asyncio.to_thread(connected[number + 1].wait, PATIENCE)
                assert servers.sources["mqtt"][-1] == lab.address(other)
        finally:
            client.disconnect()
            await asyncio.to_thread(client.loop_stop)

    with nothing_through_the_tunnel(lab):
        run(main)


def test_aiomqtt_ends_with_its_own_error_and_connects_again(lab: Lab, servers: Servers) -> None:
    async def main() -> None:
        with pytest.raises(aiomqtt.MqttError):
            async with bindsock.integrations.aiomqtt.Client(servers.host, ports.MQTT) as client:
                assert servers.wait_for("mqtt") == {lab.address("wifi0")}
                while not bindsock.statistics().tracked:
                    await asyncio.sleep(0.01)
                lab.down("wifi0")
                async for _ in client.messages:
                    raise AssertionError("nobody publishes")
        async with bindsock.integrations.aiomqtt.Client(servers.host, ports.MQTT):
            assert servers.sources["mqtt"][-1] == lab.address("eth0")

    with nothing_through_the_tunnel(lab):
        run(main)
