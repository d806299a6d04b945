"""Programs without bindsock, under ``bindsock run``, with a VPN that has the default route."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.grpc_server import PORT, SERVICE, TLS_PORT, grpc_server
from tests.integrations.servers import Servers
from tests.integrations.tunnel import nothing_through_the_tunnel

from .programs import PYTHON, ROOT, environment, report_of, run, running, script

pytestmark = pytest.mark.lab

QUIET = ("--quiet", "--")
REPORT = ("--quiet", "--report", "--json", "--")

URLLIB = """
    import sys, urllib.request
    print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())
"""
REQUESTS = """
    import sys, requests
    for url in sys.argv[1:]:
        print(requests.get(url, timeout=20).text)
"""
ASYNCIO = """
    import asyncio, sys
    async def main():
        reader, writer = await asyncio.open_connection(*sys.argv[1:])
        print((await reader.readline()).decode().split()[1])
        writer.close()
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Answer, remote_addr=(sys.argv[1], 7007))
        transport.sendto(b"ping")
        print((await protocol.answer).decode().split()[0])
        transport.close()
    class Answer(asyncio.DatagramProtocol):
        def __init__(self):
            self.answer = asyncio.get_running_loop().create_future()
        def datagram_received(self, data, address):
            self.answer.set_result(data)
"""
TRIO = """
    import sys, trio
    async def main():
        async with await trio.open_tcp_stream(sys.argv[1], int(sys.argv[2])) as stream:
            print((await stream.receive_some()).decode().split()[1])
    trio.run(main)
"""
DATAGRAMS = """
    import socket, sys
    for send in ("connect", "sendto", "sendmsg"):
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(20)
            address = (sys.argv[1], int(sys.argv[2]))
            if send == "connect":
                sock.connect(address)
                sock.send(b"ping")
            elif send == "sendto":
                sock.sendto(b"ping", 0, address)
            else:
                sock.sendmsg([b"ping"], [], 0, address)
            print(sock.recv(100).decode().split()[0])
"""
GRPC = f"""
    import asyncio, grpc, grpc.aio, sys
    from pathlib import Path
    host, authority = sys.argv[1:]
    credentials = grpc.ssl_channel_credentials(Path(authority).read_bytes())
    for channel in (grpc.insecure_channel(f"{{host}}:{PORT}"), grpc.secure_channel(f"{{host}}:{TLS_PORT}", credentials)):
        with channel:
            print(channel.unary_unary("/{SERVICE}/Whence")(b"", timeout=20).decode())
    async def main():
        async with grpc.aio.secure_channel(f"{{host}}:{TLS_PORT}", credentials) as channel:
            print((await channel.unary_unary("/{SERVICE}/Whence")(b"", timeout=20)).decode())
    asyncio.run(main())
"""
LEFT_OPEN = """
    import asyncio, sys
    left = []
    async def main():
        left.append(await asyncio.open_connection(*sys.argv[1:]))
"""
C_ARES = """
    import asyncio, sys, aiodns
    async def main():
        async with aiodns.DNSResolver(nameservers=[sys.argv[1]], timeout=20) as resolver:
            await resolver.query_dns(sys.argv[2], "A")
    asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def beneath_vpn(lab: Lab, request: pytest.FixtureRequest) -> None:
    if "servers" not in request.fixturenames:
        lab.vpn_up("metric")


def http(servers: Servers) -> str:
    return f"http://{servers.host}:{ports.HTTP}/"


def expect(program: str, *arguments: str, lab: Lab, lines: int = 1, what: str) -> None:
    """Run a program that prints the sources that servers saw. They must be the Wi-Fi's, and no packet may enter the tunnel."""
    with nothing_through_the_tunnel(lab):
        done = run(PYTHON, "-W", "error", program, *arguments, options=REPORT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [lab.address("wifi0")] * lines
    bound = [entry for entry in report_of(done) if entry["outcome"] == "bound"]
    assert bound == [{"outcome": "bound", "what": what, "detail": "wifi0", "count": lines or 1}]
    assert not [entry for entry in report_of(done) if entry["outcome"] in ("escaped", "refused")]


def test_urllib(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    expect(script(tmp_path, URLLIB), http(servers), lab=lab, what="sockets")


def test_requests(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    program = script(tmp_path, REQUESTS)
    with nothing_through_the_tunnel(lab):
        done = run(
            PYTHON,
            program,
            http(servers),
            f"https://{servers.host}:{ports.HTTPS}/",
            options=QUIET,
            env=environment(REQUESTS_CA_BUNDLE=str(servers.authority_file)),
        )
    assert done.stdout.split() == [lab.address("wifi0")] * 2, done.stderr


@pytest.mark.parametrize("library", ["asyncio", "uvloop"])
def test_event_loops(lab: Lab, tmp_path: Path, library: str) -> None:
    program = script(tmp_path, f"{ASYNCIO}\n    import {library}\n    {library}.run(main())\n")
    expect(program, lab.server.ipv4, str(lab.server.tcp_port), lab=lab, lines=2, what="event loops")


def test_trio(lab: Lab, tmp_path: Path) -> None:
    expect(script(tmp_path, TRIO), lab.server.ipv4, str(lab.server.tcp_port), lab=lab, what="trio")


def test_datagram_sockets(lab: Lab, tmp_path: Path) -> None:
    program = script(tmp_path, DATAGRAMS)
    expect(program, lab.server.ipv4, str(lab.server.udp_port), lab=lab, lines=3, what="sockets")


def test_grpc(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    program = script(tmp_path, GRPC)
    with grpc_server(lab, servers):
        expect(program, servers.host, str(servers.authority_file), lab=lab, lines=3, what="gRPC")


def test_c_ares(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    expect(script(tmp_path, C_ARES), servers.host, ports.NAME, lab=lab, lines=0, what="c-ares")
    assert servers.wait_for("dns") == {lab.address("wifi0")}


def test_a_pinned_interface_is_used_by_all(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    program = script(tmp_path, f"{URLLIB}\n    import asyncio\n    {ASYNCIO.replace('sys.argv[1:]', 'sys.argv[2:]')}")
    Path(program).write_text(
        Path(program).read_text().replace("(sys.argv[1], 7007)", "(sys.argv[2], 7007)") + "asyncio.run(main())"
    )
    done = run(
        PYTHON, program, http(servers), servers.host, str(lab.server.tcp_port), options=("--quiet", "--interface", "eth0", "--")
    )
    assert done.stdout.split() == [lab.address("eth0")] * 3, done.stderr


@pytest.mark.parametrize("given", ["inherited", "none", "its own"])
def test_python_child_processes_are_covered_whatever_environment_they_get(
    lab: Lab, servers: Servers, tmp_path: Path, given: str
) -> None:
    child = script(tmp_path, URLLIB, "child")
    env = {"inherited": "None", "none": "{}", "its own": "{'PYTHONPATH': '/nowhere', 'A': 'B'}"}[given]
    program = script(
        tmp_path,
        f"""
        import subprocess, sys
        sys.exit(subprocess.run([sys.executable, {child!r}, sys.argv[1]], env={env}).returncode)
        """,
    )
    expect(program, http(servers), lab=lab, what="sockets")


def test_multiprocessing_is_covered(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
        import multiprocessing, sys, urllib.request
        def get(url):
            return urllib.request.urlopen(url, timeout=20).read().decode()
        if __name__ == "__main__":
            for method in ("spawn", "fork", "forkserver"):
                with multiprocessing.get_context(method).Pool(1) as pool:
                    print(pool.apply(get, (sys.argv[1],)))
        """,
    )
    with nothing_through_the_tunnel(lab):
        done = run(PYTHON, program, http(servers), options=REPORT)
    assert done.stdout.split() == [lab.address("wifi0")] * 3, done.stderr
    assert [entry["count"] for entry in report_of(done) if entry["outcome"] == "bound"] == [3]


def test_a_module(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    script(package, URLLIB, "__main__")
    with nothing_through_the_tunnel(lab):
        done = run("--quiet", "-m", "package", http(servers), cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)))
    assert done.stdout.strip() == lab.address("wifi0"), done.stderr


def test_a_program_finds_what_it_would_find_without(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
        import os, sys, __main__
        print(sys.argv, sys.path, sys.flags, sys.orig_argv[1:], __name__, __main__.__file__, __builtins__, sep="\\n")
        """,
    )
    command = [PYTHON, "-X", "utf8", "-O", program, "--report", "-m", "--", "--interface"]
    plain = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(), cwd=tmp_path)
    covered = run(*command, options=QUIET, cwd=tmp_path)
    assert covered.stderr == ""
    assert covered.stdout == plain.stdout


def test_the_sitecustomize_that_there_would_be_runs(tmp_path: Path) -> None:
    script(tmp_path, "import sys; print(__name__, __file__, __name__ in sys.modules)", "sitecustomize")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run(
        PYTHON, "-c", "import sitecustomize; print(sitecustomize.__file__)", options=QUIET, env=environment(PYTHONPATH=path)
    )
    there = str(tmp_path / "sitecustomize.py")
    # ``bindsock run`` is a Python process with the same options.
    assert done.stdout.splitlines()[-2:] == [f"sitecustomize {there} True", there]


@pytest.mark.parametrize("options", [(), ("--report",), ("--proxy",)])
def test_the_exit_status_is_the_programs(options: tuple[str, ...]) -> None:
    for code, status in (("import sys; sys.exit(7)", 7), ("raise SystemExit('no')", 1), ("1/0", 1), ("", 0)):
        done = run(PYTHON, "-c", code, options=("--quiet", *options, "--"))
        assert done.returncode == status
    assert run(PYTHON, "-c", "import os; os.kill(os.getpid(), 9)", options=("--quiet", *options, "--")).returncode == -9


def test_a_traceback_is_the_programs_and_nothing_else(tmp_path: Path) -> None:
    program = script(tmp_path, "def fail():\n    raise ValueError('why')\nfail()\n")
    plain = subprocess.run([PYTHON, program], capture_output=True, text=True, check=False, env=environment())
    assert run(PYTHON, program, options=QUIET).stderr == plain.stderr


@pytest.mark.parametrize("options", [("--quiet",), ("--quiet", "--report"), ("--quiet", "--proxy")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_program(tmp_path: Path, options: tuple[str, ...], number: signal.Signals) -> None:
    program = script(
        tmp_path,
        """
        import signal, sys, time
        def stop(number, frame):
            print("stopped by", signal.Signals(number).name, flush=True)
            sys.exit(5)
        signal.signal(signal.SIGTERM, stop)
        try:
            print("ready", flush=True)
            time.sleep(30)
        except KeyboardInterrupt:
            print("stopped by SIGINT", flush=True)
            sys.exit(5)
        """,
    )
    with running(PYTHON, program, options=options) as started:
        started.until("ready")
        assert started.interrupt(number) == 5
        assert started.line() == f"stopped by {number.name}"


def test_what_cannot_be_bound_raises_and_nothing_leaves(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    program = script(tmp_path, URLLIB)
    with nothing_through_the_tunnel(lab):
        done = run(PYTHON, program, http(servers), options=("--interface", "nothing0", "--report", "--"))
    assert done.returncode == 1
    assert "NoEffectiveInterface" in done.stderr
    assert "1 refused (sockets): NoEffectiveInterface" in done.stderr
    assert "http" not in servers.sources


def test_a_program_that_cannot_be_covered_is_not_started() -> None:
    done = run(PYTHON, "-I", "-c", "print('runs')", options=("--",))
    assert (done.returncode, done.stdout) == (3, "")
    cure = "run it without 'bindsock run', or without -I"
    assert done.stderr == f"bindsock: python -I does not load bindsock, so its connections would not be bound; {cure}\n"
    assert "Python with -I, -E or -S is not started." in " ".join(run("--help").stdout.split())
    variables = environment(BINDSOCK_RUN="{}", PYTHONPATH=str(ROOT / "bindsock/run/site"))
    done = subprocess.run([PYTHON, "-c", "print('runs')"], capture_output=True, text=True, check=False, env=variables)
    assert (done.returncode, done.stdout) == (3, "")
    assert "cannot be covered and is not started" in done.stderr


@pytest.mark.parametrize("flag", ["-I", "-E", "-S", "-bI"])
def test_a_child_that_cannot_be_covered_is_not_started(lab: Lab, tmp_path: Path, flag: str) -> None:
    program = script(
        tmp_path,
        f"""
        import asyncio, subprocess, sys
        import bindsock
        command = [sys.executable, {flag!r}, "-c", "print('runs')"]
        async def start():
            await asyncio.create_subprocess_exec(*command)
        for attempt in (lambda: subprocess.run(command), lambda: subprocess.run(command, env={{}}), lambda: asyncio.run(start())):
            try:
                attempt()
            except bindsock.BindFailed as error:
                print(error)
        """,
    )
    done = run(PYTHON, program, options=REPORT)
    cure = f"run it without 'bindsock run', or without -{flag[-1]}"
    said = f"not started: python -{flag[-1]} does not load bindsock, so its connections would not be bound; {cure} (call"
    assert [line.startswith(said) for line in done.stdout.splitlines()] == [True] * 3, done.stdout + done.stderr
    detail = f"python -{flag[-1]} does not load bindsock"
    assert report_of(done) == [{"outcome": "refused", "what": "programs", "detail": detail, "count": 3}]


def test_what_a_shell_starts_is_told_as_it_is(lab: Lab, tmp_path: Path) -> None:
    line = f"{PYTHON} -I -c pass"
    done = run("sh", "-c", line, options=("--report", "--"))
    unless = "Python programs that it starts are covered, unless with -I, -E or -S"
    assert (
        done.stderr.splitlines()[1] == f"bindsock: sh is not Python: its own connections are not covered (see --proxy); {unless}"
    )
    assert done.stderr.splitlines()[2:] == [f"bindsock: 1 left alone (programs): sh is not Python; {unless}"]
    program = script(tmp_path, f"import subprocess; subprocess.run({line!r}, shell=True)")
    done = run(PYTHON, program, options=("--quiet", "--report", "--"))
    assert done.stderr.splitlines() == [
        "bindsock: 1 left alone (programs): a shell command; Python programs in it are covered, unless with -I, -E or -S"
    ]


def test_a_report_without_connections_says_whose_it_counts(lab: Lab) -> None:
    done = run(PYTHON, "-c", "", options=("--quiet", "--report", "--"))
    assert done.stderr == "bindsock: no covered Python program has made a connection\n"


def test_a_script_for_env_with_flags_is_not_started(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/usr/bin/env -S python3 -I\nprint('runs')\n")
    program.chmod(0o755)
    done = run(str(program), options=("--",))
    assert (done.returncode, done.stdout) == (3, "")


def test_another_interpreter_need_not_have_bindsock(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    subprocess.run([sys._base_executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)  # type: ignore[attr-defined]
    program = script(tmp_path, URLLIB)
    with nothing_through_the_tunnel(lab):
        done = run(str(tmp_path / "venv/bin/python"), program, http(servers), options=QUIET, cwd=ROOT, env=environment())
    assert done.stdout.strip() == lab.address("wifi0"), done.stderr


def test_programs_that_are_not_python_go_by_the_proxy_and_python_does_not(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
        import os, subprocess, sys, urllib.request
        print(os.environ.get("http_proxy"), urllib.request.getproxies().get("http"))
        print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())
        for env in (None, {"PATH": os.environ["PATH"]}):
            print(subprocess.run(["curl", "-sS", sys.argv[1]], env=env, capture_output=True, text=True).stdout)
        sys.stdout.flush()
        os.system(f"curl -sS {sys.argv[1]}")
        """,
    )
    with nothing_through_the_tunnel(lab):
        done = run(PYTHON, program, http(servers), options=("--proxy", "--"))
        assert done.stdout.split() == ["None", "None", *[lab.address("wifi0")] * 4], done.stderr
        done = run("curl", "-sS", http(servers), options=("--proxy", "--"))
        assert done.stdout == lab.address("wifi0"), done.stderr
        assert "curl is not Python: it has the proxy's address in http_proxy" in done.stderr


def test_it_says_what_it_covers_and_what_not(lab: Lab) -> None:
    done = run(PYTHON, "-c", "", options=("--",))
    covered = "blocking sockets, asyncio, uvloop, trio, gRPC, c-ares, Python child processes"
    assert done.stderr.splitlines() == [f"bindsock: connections leave by wifi0 now; covered: {covered}"]
    done = run("true", options=("--",))
    assert "true is not Python: its own connections are not covered (see --proxy)" in done.stderr.splitlines()[1]


def test_the_report_tells_what_was_left_alone_and_what_escaped(lab: Lab, tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
        import socket, subprocess, sys
        host, port = sys.argv[1], int(sys.argv[2])
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname()).close()
        socket.create_connection((host, port)).close()
        socket.create_connection((host, port), source_address=(sys.argv[3], 0)).close()
        socket.create_connection((host, port), source_address=(sys.argv[4], 0)).close()
        subprocess.run(["true"])
        """,
    )
    (tunnel,) = json.loads(lab.ip("-json", "-4", "address", "show", "tun0"))[0]["addr_info"]
    arguments = [lab.server.ipv4, str(lab.server.tcp_port), lab.address("wifi0"), tunnel["local"]]
    done = run(PYTHON, program, *arguments, options=("--quiet", "--report", "--"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "bindsock: 2 by wifi0 (sockets)",
        "bindsock: 1 left alone (programs): true is not Python",
        "bindsock: 1 left alone (sockets): to this machine",
        "bindsock: 1 escaped (sockets): the program has bound the socket to an address",
    ]


def test_a_library_that_is_not_covered_is_told(lab: Lab) -> None:
    done = run(PYTHON, "-c", "import psycopg, psycopg.pq", options=("--quiet", "--report", "--"))
    assert done.stderr.splitlines() == [
        "psycopg is not covered by bindsock: its connections are made by libpq, in C",
        "bindsock: 1 escaped (psycopg): imported, and its connections are made by libpq, in C",
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "no program to run"),
        (["-m"], 2, "-m needs the name of a module"),
        (["--json", "--", "true"], 2, "--json needs --report"),
        (["--", "/nowhere/program"], 127, "/nowhere/program: not found"),
        (["--report", "--", "/nowhere/program"], 127, "/nowhere/program: not found"),
        (["--", "/"], 126, "/: Permission denied"),
    ],
)
def test_what_cannot_be_started(arguments: list[str], status: int, message: str) -> None:
    done = run("--quiet", *arguments)
    assert done.returncode == status
    assert message in done.stderr


@pytest.mark.parametrize("options", [("--quiet",), ("--quiet", "--report")])
def test_a_file_for_python_is_not_started_without_python(tmp_path: Path, options: tuple[str, ...]) -> None:
    program = script(tmp_path, "print('started')")
    done = run(*options, "--", program)
    assert (done.returncode, done.stdout) == (126, "")
    assert done.stderr == f"bindsock: {program}: Permission denied; did you mean bindsock run -- python {program}?\n"


def test_a_connection_ends_when_its_interface_goes_and_the_next_leaves_by_the_other(lab: Lab, tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
        import asyncio, sys
        async def main():
            while True:
                try:
                    reader, writer = await asyncio.open_connection(*sys.argv[1:])
                    print((await reader.readline()).decode().split()[1], flush=True)
                    await reader.read()
                except OSError as error:
                    print(type(error).__name__, flush=True)
        asyncio.run(main())
        """,
    )
    with nothing_through_the_tunnel(lab), running(PYTHON, program, lab.server.ipv4, str(lab.server.tcp_port)) as started:
        assert started.line() == lab.address("wifi0")
        lab.down("wifi0")
        assert started.line() == "InterfaceChanged"
        assert started.line() == lab.address("eth0")


def test_json_and_text_tell_the_same(lab: Lab, tmp_path: Path) -> None:
    program = script(tmp_path, "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2]))).close()")
    done = run(PYTHON, program, lab.server.ipv4, str(lab.server.tcp_port), options=REPORT)
    assert json.loads(done.stderr) == {"connections": [{"outcome": "bound", "what": "sockets", "detail": "wifi0", "count": 1}]}


def test_ipv6_is_bound_too(lab: Lab, tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
        import socket, sys
        with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
            print(sock.recv(100).decode().split()[1])
        """,
    )
    with nothing_through_the_tunnel(lab):
        done = run(PYTHON, program, lab.server.ipv6, str(lab.server.tcp_port), options=QUIET)
    assert done.stdout.strip() == lab.address("wifi0", socket.AF_INET6), done.stderr


@pytest.mark.parametrize("library", ["asyncio", "uvloop"])
def test_a_connection_that_is_left_open_disturbs_no_exit(lab: Lab, tmp_path: Path, library: str) -> None:
    program = script(tmp_path, f"{LEFT_OPEN}\n    import {library}\n    {library}.run(main())\n")
    done = run(PYTHON, program, lab.server.ipv6, str(lab.server.tcp_port), options=QUIET)
    assert (done.returncode, done.stderr) == (0, "")
