"""Routes for bound sockets where a VPN has deleted them: made on request, kept up to date, and removed however a process ends."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, get_args

import anyio
import pytest
import uvloop

import bindsock
import bindsock.anyio
from bindsock import kernel as kernels
from bindsock.factory import connector_of
from bindsock.kernel.linux.rtnetlink.repair import Repairs
from bindsock.model.policy import Gateway, Repair, repair_table
from bindsock.testing.lab import VpnMode
from tests.cli.conftest import run as run
from tests.integrations.tunnel import nothing_through_the_tunnel
from tests.linux.namespaces import as_nobody

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from bindsock.testing.lab import Lab
    from tests.cli.conftest import Run

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("vpn")]


def tables(lab: Lab) -> str:
    """Everything that a repair could change, as text."""
    return "".join(lab.ip(six, *what) for six in ("-4", "-6") for what in (["rule"], ["route", "show", "table", "all"]))


async def greeting(lab: Lab, factory: bindsock.TransportFactory, host: str, **options: Any) -> str | None:
    """Connect by the factory. Returns the interface that the server saw."""
    return await seen_by_server(lab, factory.open_connection(host, lab.server.tcp_port, **options))


async def plain_greeting(lab: Lab) -> str | None:
    """Connect by asyncio, over IPv4. Returns the interface that the server saw."""
    return await seen_by_server(lab, asyncio.open_connection(lab.server.ipv4, lab.server.tcp_port))


async def seen_by_server(
    lab: Lab, connection: Coroutine[Any, Any, tuple[asyncio.StreamReader, asyncio.StreamWriter]]
) -> str | None:
    async with asyncio.timeout(20):
        reader, writer = await connection
        source = (await reader.readline()).decode().split()[1]
        writer.close()
        await writer.wait_closed()
    return lab.interface_of(source)


@pytest.mark.parametrize("mode", get_args(VpnMode))
async def test_every_mode_of_the_vpn_is_got_beneath_when_asked(lab: Lab, mode: VpnMode) -> None:
    before = tables(lab)
    async with bindsock.TransportFactory(repair_routes=True) as factory:
        assert factory.repair_routes
        factory.effective_interface()
        lab.vpn_up(mode)
        with nothing_through_the_tunnel(lab, "tun0"):
            for host in (lab.server.ipv4, lab.server.ipv6):
                assert await greeting(lab, factory, host) == "wifi0"
                assert await greeting(lab, factory, host, interface="eth0") == "eth0"
        lab.vpn_down()
        assert await greeting(lab, factory, lab.server.ipv4) == "wifi0"
        assert "proto 181" not in tables(lab), "the VPN has gone"
    assert sorted(tables(lab).splitlines()) == sorted(before.splitlines())


async def test_what_was_made_is_removed_at_the_end(lab: Lab) -> None:
    async with bindsock.TransportFactory(repair_routes=True) as factory:
        factory.effective_interface()
        lab.vpn_up("replace")
        before = tables(lab)
        assert await greeting(lab, factory, lab.server.ipv4) == "wifi0"
        assert "proto 181" in tables(lab)
    assert tables(lab) == before


@pytest.mark.parametrize("base", [asyncio.SelectorEventLoop, uvloop.Loop])
def test_an_event_loop_repairs_routes_for_all_its_connections_and_leaves_none(
    lab: Lab, base: type[asyncio.AbstractEventLoop]
) -> None:
    before = tables(lab)
    with asyncio.Runner(loop_factory=bindsock.loop_factory(base, repair_routes=True)) as runner:
        assert runner.run(plain_greeting(lab)) == "wifi0"
        assert tables(lab) == before
        lab.vpn_up("replace")
        replaced = tables(lab)
        with nothing_through_the_tunnel(lab, "tun0"):
            assert runner.run(plain_greeting(lab)) == "wifi0"
        assert "proto 181" in tables(lab)
    assert tables(lab) == replaced


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_end_of_a_run_removes_what_its_factory_has_made(lab: Lab, backend: str) -> None:
    factory = bindsock.anyio.TransportFactory(repair_routes=True)

    async def connect() -> str | None:
        with anyio.fail_after(20):
            async with await factory.connect_tcp(lab.server.ipv4, lab.server.tcp_port) as stream:
                return lab.interface_of((await stream.receive()).decode().split()[1])

    before = tables(lab)
    assert anyio.run(connect, backend=backend) == "wifi0"
    assert tables(lab) == before
    lab.vpn_up("replace")
    replaced = tables(lab)
    made: list[str] = []

    async def connect_and_look() -> str | None:
        interface = await connect()
        made.append(tables(lab))
        return interface

    with nothing_through_the_tunnel(lab, "tun0"):
        assert anyio.run(connect_and_look, backend=backend) == "wifi0"
    assert "proto 181" in made[0]
    assert tables(lab) == replaced


async def test_an_adopted_loop_repairs_routes_until_it_is_restored(lab: Lab) -> None:
    with bindsock.adopt(repair_routes=True) as factory:
        factory.effective_interface()
        lab.vpn_up("replace")
        replaced = tables(lab)
        assert await plain_greeting(lab) == "wifi0"
        assert "proto 181" in tables(lab)
    assert tables(lab) == replaced


async def test_it_is_never_done_unasked(lab: Lab) -> None:
    async with bindsock.TransportFactory() as factory:
        factory.effective_interface()
        lab.vpn_up("replace")
        before = tables(lab)
        with pytest.raises(
            bindsock.NoEffectiveInterface, match=r"ip rule add.*; root may do so, or let bindsock do it: `bindsock repair`"
        ):
            await factory.open_connection(lab.server.ipv4, lab.server.tcp_port)
        assert tables(lab) == before


async def test_an_excluded_interface_is_left_alone(lab: Lab) -> None:
    async with bindsock.TransportFactory(bindsock.Preferences(exclude=["wifi*"]), repair_routes=True) as factory:
        factory.explain(lab.server.ipv4)
        lab.vpn_up("replace")
        assert await greeting(lab, factory, lab.server.ipv4) == "eth0"
        assert "oif wifi0" not in tables(lab)


async def test_a_program_that_starts_beneath_the_vpn_takes_the_gateway_from_its_host_route(lab: Lab) -> None:
    lab.vpn_up("replace")
    async with bindsock.TransportFactory(repair_routes=True) as factory:
        assert await greeting(lab, factory, lab.server.ipv4) == "wifi0"
        with pytest.raises(bindsock.NoEffectiveInterface, match="the IPv6 gateway of wifi0 is unknown"):
            await factory.open_connection(lab.server.ipv6, lab.server.tcp_port)


async def test_a_router_among_the_neighbours_is_enough_for_ipv6(lab: Lab) -> None:
    lab.vpn_up("replace")
    gateway = lab.gateway("wifi0", socket.AF_INET6)
    address = json.loads(lab.ip("-json", "link", "show", "wifi0", namespace="router"))[0]["address"]
    lab.ip("-6", "neigh", "replace", gateway, "lladdr", address, "dev", "wifi0", "router", "nud", "reachable")
    async with bindsock.TransportFactory(repair_routes=True) as factory:
        assert await greeting(lab, factory, lab.server.ipv6) == "wifi0"


async def test_what_is_on_the_link_is_not_sent_by_the_gateway(lab: Lab) -> None:
    async with bindsock.TransportFactory(repair_routes=True) as factory:
        factory.effective_interface()
        lab.vpn_up("policy-kill")
        assert await greeting(lab, factory, lab.server.ipv4) == "wifi0"
        beside = lab.address("wifi0").rpartition(".")[0] + ".77"
        found = lab.ip("route", "get", beside, "oif", "wifi0")
        assert " via " not in found


async def test_a_datagram_stream_goes_on_when_the_vpn_takes_all_routes(lab: Lab) -> None:
    class Echo(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.replies: asyncio.Queue[bytes] = asyncio.Queue()

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.replies.put_nowait(data)

    async with bindsock.TransportFactory(repair_routes=True) as factory, asyncio.timeout(20):
        transport, protocol = await factory.create_datagram_endpoint(Echo, remote_addr=(lab.server.ipv4, lab.server.udp_port))
        transport.sendto(b"before")
        assert (await protocol.replies.get()).endswith(b" before")
        lab.vpn_up("replace")
        reply = asyncio.ensure_future(protocol.replies.get())
        while not reply.done():
            # A packet sent before bindsock reads the kernel's event is lost.
            transport.sendto(b"after")
            await asyncio.wait([reply], timeout=0.02)
        source, _, said = reply.result().split(b" ", 2)
        assert (lab.interface_of(source.decode()), said) == ("wifi0", b"after")
        transport.close()


async def test_where_two_factories_repair_the_last_one_removes(lab: Lab) -> None:
    first, second = (bindsock.TransportFactory(repair_routes=True, kernel=kernels.current()) for _ in range(2))
    async with second:
        async with first:
            for factory in (first, second):
                factory.effective_interface()
            lab.vpn_up("replace")
            before = tables(lab)
            for factory in (first, second):
                assert await greeting(lab, factory, lab.server.ipv4) == "wifi0"
        assert await greeting(lab, second, lab.server.ipv4) == "wifi0"
    assert tables(lab) == before


def test_without_the_privilege_the_error_says_which_it_takes(lab: Lab) -> None:
    lab.vpn_up("replace")
    host, port = lab.server.ipv4, lab.server.tcp_port

    def error() -> str:
        async def dial() -> str:
            async with bindsock.TransportFactory(repair_routes=True) as factory:
                try:
                    await factory.open_connection(host, port)
                except bindsock.NoEffectiveInterface as refused:
                    return str(refused)
            return "connected"

        return asyncio.run(dial())

    assert "it needs CAP_NET_ADMIN" in as_nobody(error)


KILLED = """\
import os, signal, sys
from bindsock.cli import main
from bindsock.kernel.linux.netlink import Channel
tell, left = Channel.tell, int(sys.argv[1])
def counted(self, *arguments):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    tell(self, *arguments)
Channel.tell = counted
main(["repair", "--apply"])
"""


ORDERS = {"replace": 3, "policy-kill": 6}
"""The number of commands of a repair: three for each uplink and family with a known gateway. For the other VPNs, none."""


@pytest.mark.parametrize("mode", get_args(VpnMode))
def test_after_a_kill_at_any_step_undo_leaves_the_tables_as_they_were(lab: Lab, run: Run, mode: VpnMode) -> None:
    lab.vpn_up(mode)
    before = tables(lab)
    needed = ORDERS.get(mode, 0)
    for orders in range(needed + 1):
        done = subprocess.run([sys.executable, "-c", KILLED, str(orders)], check=False, timeout=60)
        assert done.returncode == (-signal.SIGKILL if orders < needed else 0)
        assert (tables(lab) != before) == (orders > 0)
        status, out, _ = run("repair", "--undo", "--json")
        assert (status, json.loads(out)) == (0, {"removed": orders})
        assert tables(lab) == before


CRASHES = """\
import asyncio, bindsock, os, signal, sys
async def main():
    factory = bindsock.TransportFactory(repair_routes=True)
    await factory.open_connection(sys.argv[1], int(sys.argv[2]))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
EXITS = CRASHES.replace("os.kill(os.getpid(), signal.SIGKILL)", "pass")


def test_what_a_crash_has_left_is_removed_by_the_next_start(lab: Lab) -> None:
    lab.vpn_up("replace")
    before = tables(lab)
    arguments = [lab.server.ipv4, str(lab.server.tcp_port)]
    done = subprocess.run([sys.executable, "-c", CRASHES, *arguments], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert tables(lab) != before
    factory = bindsock.TransportFactory(bindsock.Preferences(exclude=["*"]), repair_routes=True)
    factory.explain(lab.server.ipv4)
    assert tables(lab) == before


def test_an_interpreter_that_exits_removes_what_it_has_made(lab: Lab) -> None:
    lab.vpn_up("replace")
    before = tables(lab)
    arguments = [lab.server.ipv4, str(lab.server.tcp_port)]
    subprocess.run([sys.executable, "-W", "ignore", "-c", EXITS, *arguments], check=True, timeout=60)
    assert tables(lab) == before


BLOCKING = """\
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as sock:
    print(sock.makefile().readline().split()[1])
"""


def test_a_program_is_run_with_repaired_routes_and_none_are_left(lab: Lab) -> None:
    lab.vpn_up("replace")
    before = tables(lab)
    program = [sys.executable, "-c", BLOCKING, lab.server.ipv4, str(lab.server.tcp_port)]
    for options, found in (([], None), (["--repair-routes"], "wifi0")):
        command = [sys.executable, "-m", "bindsock", "run", *options, "--", *program]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode == 0) == (found is not None), done.stderr
        way = "no connection can be made now" if found is None else f"connections leave by {found} now"
        assert done.stderr.startswith(f"bindsock: {way}")
        assert lab.interface_of(done.stdout.strip()) == found
    assert tables(lab) == before


@pytest.mark.parametrize("mode", get_args(VpnMode))
def test_a_proxy_repairs_routes_for_its_clients_and_leaves_none(lab: Lab, mode: VpnMode) -> None:
    before = tables(lab)
    command = [sys.executable, "-m", "bindsock", "proxy", "--listen", "127.0.0.1:0", "--quiet", "--repair-routes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        port = int(proxy.stdout.readline().split()[-1])
        assert proxy.stdout.readline() == "connections leave by wifi0 now\n"
        lab.vpn_up(mode)
        with nothing_through_the_tunnel(lab, "tun0"):
            for host in (lab.server.ipv4, f"[{lab.server.ipv6}]"):
                with socket.create_connection(("127.0.0.1", port), timeout=20) as sock, sock.makefile("rb") as answers:
                    sock.sendall(f"CONNECT {host}:{lab.server.tcp_port} HTTP/1.1\r\n\r\n".encode())
                    assert answers.readline().split()[1] == b"200"
                    while answers.readline() != b"\r\n":
                        pass
                    assert lab.interface_of(answers.readline().decode().split()[1]) == "wifi0"
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(20) == 0
    assert "proto 181" not in tables(lab)
    lab.vpn_down()
    assert sorted(tables(lab).splitlines()) == sorted(before.splitlines())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # by what earlier tests have started
def test_a_forked_child_that_exits_removes_nothing(lab: Lab) -> None:
    factory = bindsock.TransportFactory(repair_routes=True)
    factory.effective_interface()
    lab.vpn_up("replace")
    factory.effective_interface()
    made = tables(lab)
    assert "proto 181" in made
    child = os.fork()
    if child == 0:
        try:
            repairer = connector_of(factory).repairer
            assert repairer is not None
            repairer.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert tables(lab) == made


def test_a_dry_run_prints_what_apply_does(lab: Lab, run: Run) -> None:
    lab.vpn_up("policy-kill")
    before = tables(lab)
    status, out, _ = run("repair", "--json")
    planned = json.loads(out)
    assert (status, planned["applied"]) == (1, False)
    assert tables(lab) == before
    for repair in planned["make"]:
        for command in repair["commands"]:
            lab.ip(*command.split()[1:])
    by_hand = tables(lab)
    for repair in planned["make"]:
        for command in reversed(repair["commands"]):
            lab.ip(*command.replace(" add ", " del ").split()[1:])
    assert tables(lab) == before
    assert run("repair", "--apply")[0] == 0
    assert tables(lab).replace(" proto 182", "") == by_hand
    status, out, _ = run("explain", "-4", lab.server.ipv4)
    assert status == 0
    assert "wifi0 has the default route of table 3036676" in out
    assert out.count(" (made by bindsock repair)") == 3
    status, out, _ = run("repair")
    assert (status, out) == (0, f"nothing needs repair; repairs in place: {len(planned['make'])}\n")
    assert run("repair", "--undo") == (0, f"removed {3 * len(planned['make'])} rules and routes\n", "")
    assert tables(lab) == before


def test_nobody_gets_the_dry_run_and_a_refusal(lab: Lab, run: Run) -> None:
    lab.vpn_up("policy-kill")

    def said() -> tuple[list[int], str]:
        import contextlib
        import io

        from bindsock.cli import main

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            return [main(["repair", *options]) for options in ([], ["--apply"], ["--undo"])], errors.getvalue()

    assert run("repair", "--apply", "--interface", "eth0")[0] == 0  # so that there is something to undo
    refused = "bindsock: the system refused (Operation not permitted): {} needs CAP_NET_ADMIN, so run it as root\n"
    assert as_nobody(said) == ([1, 3, 3], refused.format("--apply") + refused.format("--undo"))


def repaired(lab: Lab) -> set[str]:
    """The interfaces that the rules of repairs name."""
    lines = "".join(lab.ip(six, "rule") for six in ("-4", "-6")).splitlines()
    return {line.split(" oif ")[1].split()[0] for line in lines if " proto 182" in line}


def test_the_only_interface_to_use_is_the_only_one_that_the_command_touches(lab: Lab, run: Run) -> None:
    lab.vpn_up("policy-kill")
    before = tables(lab)
    assert run("repair", "--apply", "--interface", "eth0")[0] == 0
    assert repaired(lab) == {"eth0"}
    assert run("repair", "--interface", "eth0")[0] == 0
    assert run("repair", "--apply")[0] == 0
    assert repaired(lab) == {"eth0", "wifi0"}
    assert run("repair", "--undo", "--interface", "eth0", "-6")[:2] == (0, "there was nothing to undo\n")
    assert run("repair", "--undo", "--interface", "eth0")[:2] == (0, "removed 3 rules and routes\n")
    assert repaired(lab) == {"wifi0"}
    assert run("repair", "--undo")[0] == 0
    assert tables(lab) == before


def test_what_is_asked_for_with_an_interface_stays_without_it(lab: Lab, run: Run) -> None:
    """The tunnel has the default route, wifi0 its own, and eth0 none."""
    lab.vpn_up("policy-kill")
    lab.ip("rule", "add", "pref", "90", "oif", "wifi0", "lookup", "77")
    lab.ip("route", "add", "default", "via", lab.gateway("wifi0"), "dev", "wifi0", "table", "77")
    before = tables(lab)
    assert run("repair", "-4", "--apply", "--interface", "eth0")[0] == 0
    made = tables(lab)
    assert repaired(lab) == {"eth0"}
    for options in ((), ("--apply",)):
        assert run("repair", "-4", *options)[:2] == (0, "nothing needs repair; repairs in place: 1\n")
        assert tables(lab) == made
    assert run("repair", "--undo")[0] == 0
    assert tables(lab) == before


def test_the_repairs_in_place_are_those_that_were_asked_for(lab: Lab, run: Run) -> None:
    lab.vpn_up("policy-kill")
    assert run("repair", "--apply", "-4")[0] == 0
    for options, expected in (("-4",), {"wifi0", "eth0"}), (("-6",), set()), (("--interface", "eth0"), {"eth0"}):
        assert {r["interface"] for r in json.loads(run("repair", "--json", *options)[1])["existing"]} == expected
    assert run("repair", "-4", "--interface", "eth0")[1] == "nothing needs repair; repairs in place: 1\n"
    assert run("repair", "-6")[1] == "nothing needs repair\n"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_route_that_a_crash_has_left_does_not_keep_its_gateway(lab: Lab, family: socket.AddressFamily) -> None:
    address = ipaddress.ip_address(lab.gateway("wifi0", family))
    repair = Repair(family, "wifi0", socket.if_nametoindex("wifi0"), Gateway(address, "the test"))
    six = "-4" if family == socket.AF_INET else "-6"
    lab.ip(six, "route", "add", "default", "via", str(address + 70), "dev", "wifi0", "table", str(repair.table), "proto", "182")
    repairs = Repairs(kept=True)
    try:
        for _ in range(2):
            repairs.make(repair)
            (made,) = repairs.existing()
            assert made.gateway.address == address
            (line,) = lab.ip(six, "route", "show", "table", str(repair.table)).splitlines()
            assert f"via {address} " in line
    finally:
        repairs.close()


def test_undo_finds_what_has_the_name_from_before_a_rename(lab: Lab, run: Run) -> None:
    lab.vpn_up("policy-kill")
    before = {six: lab.ip(six, "rule") for six in ("-4", "-6")}
    assert run("repair", "--apply")[0] == 0
    lab.ip("link", "set", "eth0", "down")
    lab.ip("link", "set", "eth0", "name", "wan0")
    assert "oif eth0 [detached]" in lab.ip("rule")
    assert run("repair", "--undo", "--interface", "wan0")[0] == 0
    assert repaired(lab) == {"wifi0"}
    assert run("repair", "--undo")[0] == 0
    assert {six: lab.ip(six, "rule") for six in ("-4", "-6")} == before


def test_undo_of_a_renamed_interface_spares_the_one_that_has_its_name_now(lab: Lab, run: Run) -> None:
    lab.vpn_up("policy-kill")
    assert run("repair", "--apply", "--interface", "eth0")[0] == 0
    lab.ip("link", "set", "eth0", "down")
    lab.ip("link", "set", "eth0", "name", "wan0")
    lab.ip("link", "set", "wifi0", "down")
    lab.ip("link", "set", "wifi0", "name", "eth0")
    index = socket.if_nametoindex("eth0")
    table = str(repair_table(index))
    lab.ip("rule", "add", "pref", "99", "oif", "eth0", "lookup", table, "proto", "182")
    assert run("repair", "--undo", "--interface", "wan0")[0] == 0
    left = [line for line in lab.ip("rule").splitlines() if " proto 182" in line]
    assert [line.split(" lookup ")[1].split()[0] for line in left] == ["main", table]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--interface", "nope"), "there is no interface nope; there are lo, wifi0, eth0, tun0"),
        (("--interface", "tun0"), "tun0 is a tunnel: it gets no route"),
        (("--interface", "lo"), "lo is the loopback: it gets no route"),
        (("--interface", "eth0", "--exclude", "eth*"), "eth0 excluded by 'eth*': it gets no route"),
        (("--undo", "--interface", "nope"), "there is no interface nope, and no repair of it"),
    ],
)
def test_an_interface_that_gets_no_repair_is_an_error_with_the_reason(
    lab: Lab, run: Run, options: tuple[str, ...], reason: str
) -> None:
    lab.vpn_up("policy-kill")
    before = tables(lab)
    for more in ((), ("--apply",)) if "--undo" not in options else ((),):
        status, out, err = run("repair", *options, *more)
        assert (status, out, err) == (1, "", f"bindsock: {reason}\n")
    assert tables(lab) == before


def test_only_the_family_that_is_asked_for_is_repaired(lab: Lab, run: Run) -> None:
    lab.vpn_up("policy-kill")
    before = tables(lab)
    assert run("repair", "-6", "--apply")[:2] == (0, "nothing needs repair\n")
    assert tables(lab) == before


def test_undo_takes_no_preferences(run: Run) -> None:
    status, out, err = run("repair", "--undo", "--exclude", "eth*")
    assert (status, out) == (2, "")
    assert "only --interface and --family limit it" in err


async def test_a_factory_for_one_interface_repairs_only_that_one(lab: Lab) -> None:
    async with bindsock.TransportFactory(interface="eth0", repair_routes=True) as factory:
        factory.effective_interface()
        lab.vpn_up("replace")
        assert await greeting(lab, factory, lab.server.ipv4) == "eth0"
        assert "oif eth0" in tables(lab)
        assert "oif wifi0" not in tables(lab)
