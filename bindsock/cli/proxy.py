"""``bindsock proxy``: a local SOCKS5 and HTTP proxy that bypasses the VPN, for programs that do not use bindsock."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from bindsock.cli import values
from bindsock.cli.completion import FILE, completed_by
from bindsock.cli.formatting import HelpFormatter
from bindsock.cli.options import Exit, add_decision_options, add_repair, factory, fail, families
from bindsock.dial import waiting
from bindsock.factory import TransportFactory
from bindsock.proxy import Proxy
from bindsock.resolvers import InterfaceResolver

_EPILOG = """\
SOCKS5, HTTP CONNECT and plain HTTP on one port. With socks5h:// and with HTTP the proxy
resolves names, by the system's resolver unless --resolver interface is given.

examples:
  bindsock proxy
  curl --proxy socks5h://127.0.0.1:1080 https://example.com
  https_proxy=http://127.0.0.1:1080 git fetch
  bindsock proxy --listen 192.0.2.7:1080 --credentials proxy-users.txt

exit status: 0 after SIGTERM, 130 after Ctrl-C, 3 if it cannot listen on the address
"""


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "proxy",
        help="a local proxy that bypasses the VPN, for any program",
        description="Run a local SOCKS5 and HTTP proxy whose connections leave by the effective interface.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=values.listening_address,
        action="append",
        help="where to listen (default: 127.0.0.1:1080; repeatable; port 0 for any; addresses other than loopback need "
        "--credentials)",
    )
    credentials = parser.add_argument(
        "--credentials",
        metavar="FILE",
        type=Path,
        help="a file of user:password lines: only these users are accepted (passwords are sent unencrypted)",
    )
    completed_by(credentials, FILE)
    parser.add_argument(
        "--max-connections",
        metavar="N",
        type=values.whole_number,
        default=512,
        help="most clients at the same time (%(default)s)",
    )
    parser.add_argument(
        "--head-limit", metavar="BYTES", type=values.whole_number, default=16384, help="largest head of a request (%(default)s)"
    )
    parser.add_argument(
        "--connect-timeout",
        metavar="SECONDS",
        type=values.seconds,
        default=30.0,
        help="timeout of an outgoing connect (%(default)s)",
    )
    parser.add_argument(
        "--resolver",
        choices=("system", "interface"),
        default="system",
        help="who resolves names: the system's resolver, or name servers that are asked by the effective interface",
    )
    parser.add_argument(
        "--dns-server",
        metavar="ADDRESS",
        type=values.address,
        action="append",
        default=[],
        help="a name server for --resolver interface (repeatable)",
    )
    parser.add_argument("--quiet", action="store_true", help="do not log each connection")
    add_repair(parser)
    add_decision_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.dns_server and arguments.resolver != "interface":
        arguments.parser.error("--dns-server needs --resolver interface")
    credentials = _credentials(arguments)
    try:
        resolver = InterfaceResolver(arguments.dns_server) if arguments.resolver == "interface" else None
    except ModuleNotFoundError as error:  # its text names the extra that is missing
        return fail(str(error), Exit.SYSTEM)
    logging.basicConfig(
        stream=sys.stderr, format="%(asctime)s %(message)s", level=logging.WARNING if arguments.quiet else logging.INFO
    )
    waiting.run(_run(arguments, credentials, resolver))
    return Exit.OK


async def _run(arguments: argparse.Namespace, credentials: dict[str, str] | None, resolver: InterfaceResolver | None) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)  # before anybody is told that it listens
    async with (
        factory(arguments, resolver=resolver) as transports,
        Proxy(
            transports,
            credentials=credentials,
            max_connections=arguments.max_connections,
            head_limit=arguments.head_limit,
            connect_timeout=arguments.connect_timeout,
            family=socket.AF_UNSPEC if arguments.family is None else families(arguments)[0],
        ) as proxy,
    ):
        for host, port in arguments.listen or [("127.0.0.1", 1080)]:
            try:
                bound_host, bound_port = await proxy.listen(host, port)
            except ValueError as error:
                arguments.parser.error(str(error))
            print(f"listening on {bound_host} port {bound_port}", flush=True)
        _say_where_to(transports)
        await stopped.wait()


def _say_where_to(transports: TransportFactory) -> None:
    try:
        print(f"connections leave by {transports.effective_interface().name} now", flush=True)
    except OSError as error:
        print(f"no connection can be made now: {error}", flush=True)


def _credentials(arguments: argparse.Namespace) -> dict[str, str] | None:
    if arguments.credentials is None:
        return None
    users = {}
    try:
        text = arguments.credentials.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        arguments.parser.error(f"{arguments.credentials}: not UTF-8")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, password = line.partition(":")
        if not colon or not user or not password:
            arguments.parser.error(f"{arguments.credentials}, line {number}: not user:password")
        users[user] = password
    if not users:
        arguments.parser.error(f"{arguments.credentials}: there is no user in this file")
    return users
