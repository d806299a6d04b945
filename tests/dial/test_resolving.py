"""Numeric hosts are recognised without a query."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Any

import pytest

from bindsock.dial.resolving import address_of, numeric, resolve

STREAM = socket.SOCK_STREAM


@pytest.mark.parametrize(
    ("host", "port", "family", "sockaddr"),
    [
        ("192.0.2.1", 80, 0, ("192.0.2.1", 80)),
        ("192.0.2.1", "80", socket.AF_INET, ("192.0.2.1", 80)),
        ("2001:db8::1", None, 0, ("2001:db8::1", 0, 0, 0)),
        ("fe80::1%7", 80, 0, ("fe80::1", 80, 0, 7)),
        ("192.0.2.1", 80, socket.AF_INET6, None),
        ("192.0.2.1", "http", 0, None),
        ("example.com", 80, 0, None),
        ("192.0.2", 80, 0, None),
        ("", 80, 0, None),
        (None, 80, 0, None),
    ],
)
def test_numeric_hosts(host: str | None, port: Any, family: int, sockaddr: tuple[Any, ...] | None) -> None:
    info = numeric(host, port, family, STREAM, 0)
    assert (info[4] if info else None) == sockaddr
    if info:
        assert info == (socket.AF_INET6 if len(info[4]) == 4 else socket.AF_INET, STREAM, socket.IPPROTO_TCP, "", sockaddr)


@pytest.mark.parametrize("host", ["localhost\0.example", "127.0.0.1\0x", "fe80::1%lo\0x", b"localhost\0"])
async def test_a_host_with_a_null_character_is_not_cut_there(host: Any) -> None:
    with pytest.raises(ValueError, match="embedded null"):
        await resolve(host, 80, type=STREAM)


def test_it_agrees_with_the_system() -> None:
    for host in ("127.0.0.1", "::1", "2001:db8::5"):
        theirs = socket.getaddrinfo(host, 443, type=STREAM, flags=socket.AI_NUMERICHOST)
        assert [numeric(host, 443, 0, STREAM, 0)] == theirs


async def test_names_go_to_the_systems_resolver() -> None:
    infos = await resolve("localhost", 80, type=STREAM)
    assert {address_of(info[4]).is_loopback for info in infos} == {True}


def test_a_socket_address_keeps_its_scope() -> None:
    assert address_of(("fe80::1", 80, 0, 3)) == ip_address("fe80::1%3")
    assert address_of(("2001:db8::1", 80, 0, 0)) == ip_address("2001:db8::1")
    assert address_of(("192.0.2.1", 80)) == ip_address("192.0.2.1")
