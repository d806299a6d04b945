"""The errors of refused and unanswered dials, and their messages."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest

import bindsock
from bindsock.dial.attempt import Attempt
from bindsock.dial.binding import connect_error
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.dial.refusal import datagram_error, firewall_error, no_answer
from bindsock.errors import BindFailed, FirewallBlocked, NoAnswer
from bindsock.kernel.linux.rejections import parse
from bindsock.model.rejection import Departure, Rejection
from bindsock.routing.effective import Decider
from bindsock.testing import SimulatedKernel, network

PEER = ("198.51.100.7", 443)
WIFI = network("2: wifi0 wifi 192.0.2.5/24", "default via 192.0.2.1 dev wifi0")
OWN, ROUTER, SERVER = (ip_address(text) for text in ("192.0.2.5", "192.0.2.1", "198.51.100.7"))
DECIDER = Decider(WIFI)
DECISION, PATH = DECIDER.decide(SERVER), DECIDER.path(SERVER)


@pytest.mark.parametrize(
    ("code", "rejection", "words"),
    [
        (errno.EPERM, None, "the firewall or a policy of this host"),
        (errno.EACCES, None, "a firewall or a prohibiting route"),
        (errno.ECONNREFUSED, Rejection(OWN, False), "the firewall of this host rejects it"),
        (errno.EHOSTUNREACH, Rejection(OWN, True), "the firewall of this host rejects it"),
        (errno.EHOSTUNREACH, Rejection(ROUTER, True), "a firewall forbids it, according to an ICMP message of 192.0.2.1"),
        (errno.EHOSTUNREACH, Rejection(SERVER, True), "a firewall forbids it, according to an ICMP message of 198.51.100.7"),
        (errno.ECONNREFUSED, Rejection(SERVER, False), None),
        (errno.EHOSTUNREACH, Rejection(ROUTER, False), None),
        (errno.EHOSTUNREACH, Rejection(OWN, False, host_unreachable=True), None),
        (errno.ECONNREFUSED, None, None),
        (errno.ETIMEDOUT, None, None),
    ],
)
def test_what_a_firewall_does_is_told(code: int, rejection: Rejection | None, words: str | None) -> None:
    found = firewall_error(OSError(code, os.strerror(code)), PEER, DECISION, rejection, lambda: WIFI)
    if words is None:
        assert found is None
        return
    assert isinstance(found, FirewallBlocked)
    assert isinstance(found, PermissionError)
    assert words in str(found)
    assert (found.errno, found.interface, found.call) == (code, "wifi0", "connect")


class Departing(SimulatedKernel):
    """A kernel that reports the same outcome for each attempt to connect."""

    def __init__(self, becomes: Departure) -> None:
        super().__init__(WIFI)
        self._becomes = becomes

    def departure(self, sock: socket.socket, address: Any) -> Departure:
        return self._becomes


@pytest.mark.parametrize("code", [errno.ECONNREFUSED, errno.EHOSTUNREACH])
@pytest.mark.parametrize("departure", Departure)
def test_a_reset_of_this_hosts_own_is_the_firewalls(code: int, departure: Departure) -> None:
    kernel = Departing(departure)
    error = OSError(code, os.strerror(code))
    with FollowedSocket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        found = connect_error(kernel, sock, error, DECISION, PEER, lambda: WIFI)
    if departure is Departure.RESET and code == errno.ECONNREFUSED:
        assert isinstance(found, FirewallBlocked)
        assert "the firewall of this host rejects it with a reset" in str(found)
    else:
        assert found is error


def test_it_is_the_servers_where_a_second_attempt_cannot_be_bound() -> None:
    kernel = Departing(Departure.RESET)
    kernel.refuse.add("wifi0")
    error = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    with FollowedSocket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert connect_error(kernel, sock, error, DECISION, PEER, lambda: WIFI) is error


class Rules:
    """An administration that only reads a firewall."""

    def __init__(self, rules: Sequence[str] | OSError) -> None:
        self.rules = rules

    def firewall(self, version: int) -> Sequence[str]:
        if isinstance(self.rules, OSError):
            raise self.rules
        return self.rules


@pytest.mark.parametrize(
    ("hop", "rules", "words"),
    [
        (True, [], "the first hop, 192.0.2.1 on wifi0, answers"),
        (False, [], "the first hop, 192.0.2.1 on wifi0, has not answered"),
        (True, ["chain o of table ip t redirects"], "in the firewall of this host, chain o of table ip t redirects"),
        (True, ["a drops", "b drops", "c drops", "d drops", "e drops"], "a drops, b drops, c drops, 2 more"),
    ],
)
def test_what_is_seen_when_nothing_answers(hop: bool, rules: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = SimulatedKernel(WIFI)
    kernel.hops["wifi0"] = hop
    monkeypatch.setattr(kernel, "administration", Rules(rules))
    error = no_answer(kernel, PEER, DECISION, PATH, 20.0)
    assert isinstance(error, TimeoutError)
    assert "no answer from 198.51.100.7 port 443 within 20 s" in str(error)
    assert words in str(error)
    assert error.errno == errno.ETIMEDOUT


@pytest.mark.parametrize("departure", Departure)
def test_what_never_left_this_host_is_told(departure: Departure) -> None:
    error = no_answer(SimulatedKernel(WIFI), PEER, DECISION, PATH, 20.0, departure)
    assert ("the packets do not leave this host" in str(error)) == (departure in (Departure.DROPPED, Departure.RESET))


def test_rules_that_may_not_be_read_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = SimulatedKernel(WIFI)
    monkeypatch.setattr(kernel, "administration", Rules(PermissionError(errno.EPERM, "no")))
    assert "firewall" not in str(no_answer(kernel, PEER, DECISION, PATH, 20.0))


def test_a_datagrams_refusal_names_the_firewall_and_other_errors_stay() -> None:
    assert isinstance(datagram_error(PermissionError(errno.EPERM, "no"), "wifi0"), FirewallBlocked)
    for other in (OSError(errno.EMSGSIZE, "too long"), BindFailed("no", errno=errno.EPERM)):
        assert datagram_error(other, "wifi0") is other


def extended_error(origin: int, kind: int, code: int, sender: str = "192.0.2.1", family: int = socket.AF_INET) -> bytes:
    error = struct.pack("=IBBBBII", errno.EHOSTUNREACH, origin, kind, code, 0, 0, 0)
    return error + struct.pack("=HH4s8x", family, 0, socket.inet_aton(sender))


@pytest.mark.parametrize("code", [0, 1, 3, 9, 10, 13])
def test_the_icmp_message_out_of_the_error_queue(code: int) -> None:
    assert parse(extended_error(2, 3, code)) == Rejection(ROUTER, code in (9, 10, 13), code == 1)


@pytest.mark.parametrize(
    "data", [b"", extended_error(2, 3, 13)[:20], extended_error(1, 3, 13), extended_error(2, 3, 13, family=0)]
)
def test_what_is_no_icmp_message_is_passed_over(data: bytes) -> None:
    assert parse(data) is None


async def test_a_dial_that_nobody_answers_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener with a full queue completes no handshake. The second address is tried after the first one's timeout."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with socket.create_connection(address):
            expired: list[float] = []
            expire = Attempt.expire

            def noted(self: Attempt, seconds: float) -> OSError:
                expired.append(seconds)
                return expire(self, seconds)

            monkeypatch.setattr(Attempt, "expire", noted)
            with pytest.raises(NoAnswer) as caught:
                async with asyncio.timeout(20):
                    await bindsock.connect(*address, connect_timeout=0.05)
    assert expired == [0.05]
    assert "within 0.05 s" in str(caught.value)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (True, TypeError)])
async def test_a_connect_timeout_is_checked(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="connect_timeout"):
        await bindsock.open_connection("127.0.0.1", 1, connect_timeout=value)  # type: ignore[arg-type]


async def test_a_connect_timeout_with_a_connected_socket_is_refused() -> None:
    with socket.socket() as sock, pytest.raises(ValueError, match="connect_timeout"):
        await bindsock.create_connection(asyncio.Protocol, sock=sock, connect_timeout=3)
