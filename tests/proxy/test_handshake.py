"""The proxy's handshake, without a socket."""

from __future__ import annotations

import base64
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindsock.proxy import handshake
from bindsock.proxy.handshake import Dial, Event, Handshake, NeedData, Refuse, Send

SOCKS_GREETING = b"\x05\x01\x00"
USERS = {"alice": "secret", "bob": "other"}


def socks_request(host: str, port: int, *, command: int = 1) -> bytes:
    return bytes([5, command, 0, 3, len(host)]) + host.encode() + struct.pack("!H", port)


def run(conversation: Handshake, data: bytes, *, step: int | None = None) -> list[Event]:
    """Feed the bytes in pieces. Returns the events up to the first final one, or until more bytes are needed."""
    events: list[Event] = []
    step = step or len(data) or 1
    for start in range(0, len(data), step):
        conversation.receive(data[start : start + step])
        while not isinstance(event := conversation.next_event(), NeedData):
            events.append(event)
            if isinstance(event, Dial | Refuse):
                return events
    return events


@pytest.mark.parametrize("step", [None, 1])
def test_socks_client_is_told_to_go_on_and_its_name_is_left_to_the_proxy(step: int | None) -> None:
    conversation = Handshake()
    events = run(conversation, SOCKS_GREETING + socks_request("example.com", 443), step=step)
    assert events == [Send(b"\x05\x00"), Dial("example.com", 443, "socks5", b"")]
    assert conversation.accepted() == b"\x05\x00\x00\x01\0\0\0\0\0\0"
    assert conversation.failed(handshake.CONNECTION_REFUSED, "nobody there")[:2] == b"\x05\x05"


@pytest.mark.parametrize(
    ("address", "host"),
    [(b"\x01\xc0\x00\x02\x07", "192.0.2.7"), (b"\x04" + bytes.fromhex("20010db8") + bytes(11) + b"\x01", "2001:db8::1")],
)
def test_socks_addresses_of_both_families(address: bytes, host: str) -> None:
    *_, event = run(Handshake(), SOCKS_GREETING + b"\x05\x01\x00" + address + b"\x00\x50")
    assert event == Dial(host, 80, "socks5", b"")


def test_bytes_sent_ahead_of_the_answer_are_for_the_other_side() -> None:
    *_, event = run(Handshake(), SOCKS_GREETING + socks_request("example.com", 80) + b"GET / HTTP/1.0\r\n\r\n")
    assert event == Dial("example.com", 80, "socks5", b"GET / HTTP/1.0\r\n\r\n")


def test_socks_password_is_checked() -> None:
    greeting = b"\x05\x02\x00\x02"
    right = b"\x01\x05alice\x06secret"
    wrong = b"\x01\x05alice\x05other"
    events = run(Handshake(USERS), greeting + right + socks_request("example.com", 443))
    assert events == [Send(b"\x05\x02"), Send(b"\x01\x00"), Dial("example.com", 443, "socks5", b"")]
    assert run(Handshake(USERS), greeting + wrong)[-1] == Refuse(b"\x01\x01", "wrong user name or password")


def test_socks_client_that_offers_no_password_is_refused_where_one_is_needed() -> None:
    (event,) = run(Handshake(USERS), SOCKS_GREETING)
    assert event == Refuse(b"\x05\xff", "no acceptable authentication method")


@pytest.mark.parametrize("command", [2, 3])
def test_socks_bind_and_udp_are_refused_as_unsupported(command: int) -> None:
    *_, event = run(Handshake(), SOCKS_GREETING + socks_request("example.com", 443, command=command))
    assert isinstance(event, Refuse)
    assert event.data[:2] == b"\x05\x07"


def test_socks4_is_answered_in_its_own_words() -> None:
    (event,) = run(Handshake(), b"\x04\x01\x00\x50\xc0\x00\x02\x07\x00")
    assert isinstance(event, Refuse)
    assert event.data == b"\x00\x5b" + bytes(6)


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize(("target", "host"), [("example.com:443", "example.com"), ("[2001:db8::1]:443", "2001:db8::1")])
def test_http_connect(target: str, host: str, step: int | None) -> None:
    conversation = Handshake()
    (event,) = run(conversation, f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode(), step=step)
    assert event == Dial(host, 443, "connect", b"")
    assert conversation.accepted() == b"HTTP/1.1 200 Connection established\r\n\r\n"
    assert conversation.failed(handshake.TIMED_OUT, "too slow").startswith(b"HTTP/1.1 504 ")


def test_http_request_in_absolute_form_reaches_its_origin_in_origin_form() -> None:
    conversation = Handshake()
    request = (
        b"POST http://example.com:8080/a?b=c HTTP/1.1\r\nHost: example.com:8080\r\nProxy-Connection: Keep-Alive\r\n"
        b"Connection: keep-alive, X-Hop, Content-Length\r\nX-Hop: 1\r\nContent-Length: 4\r\n\r\nbody"
    )
    (event,) = run(conversation, request)
    assert event == Dial(
        "example.com",
        8080,
        "http",
        b"POST /a?b=c HTTP/1.1\r\nHost: example.com:8080\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody",
    )
    assert conversation.accepted() == b""


def test_http_credentials_are_checked_and_not_passed_on() -> None:
    def request(credentials: str) -> bytes:
        token = base64.b64encode(credentials.encode()).decode()
        return f"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nProxy-Authorization: Basic {token}\r\n\r\n".encode()

    (event,) = run(Handshake(USERS), request("bob:other"))
    assert isinstance(event, Dial)
    assert b"roxy" not in event.early
    (event,) = run(Handshake(USERS), request("bob:secret"))
    assert isinstance(event, Refuse)
    assert event.data.startswith(b"HTTP/1.1 407 ")
    assert b'Proxy-Authenticate: Basic realm="bindsock"' in event.data


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:1080\r\n\r\n", b"400"),
        (b"GET https://example.com/ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http:///nothing HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://example.com:99999/ HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT example.com HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT user@example.com:443 HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://example.com/ HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n", b"400"),
        (b"GET http://example.com/ HTTP/1.1\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"GET http://example.com/ HTTP/2.0\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET http://example.com/ HTTP/1.1\r\nX: " + b"a" * 16384, b"431"),
    ],
)
def test_http_requests_that_are_none_are_refused(request_head: bytes, status: bytes) -> None:
    (event,) = run(Handshake(), request_head)
    assert isinstance(event, Refuse)
    assert event.data.startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("name", ["", "a b", "a\0b", "a/b", "user@host", "a\r\nb"])
def test_names_that_no_resolver_should_see_are_refused(name: str) -> None:
    *_, event = run(Handshake(), SOCKS_GREETING + socks_request(name, 80))
    assert isinstance(event, Refuse)


SENSIBLE = st.sampled_from(
    [
        SOCKS_GREETING,
        b"\x05\x02\x00\x02",
        b"\x01\x05alice\x06secret",
        socks_request("example.com", 443),
        b"CONNECT example.com:443 HTTP/1.1\r\n",
        b"GET http://example.com/ HTTP/1.1\r\n",
        b"Host: example.com\r\n",
        b"Proxy-Authorization: Basic YWxpY2U6c2VjcmV0\r\n",
        b"\r\n",
    ]
)


@settings(max_examples=400)
@given(st.lists(st.one_of(SENSIBLE, st.binary(max_size=12)), max_size=6), st.booleans())
def test_whatever_is_said_is_understood_or_refused_however_it_is_cut(parts: list[bytes], closed: bool) -> None:
    data = b"".join(parts)
    users = USERS if closed else None
    whole = run(Handshake(users, limit=256), data)
    pieces = run(Handshake(users, limit=256), data, step=1)
    assert [type(e) for e in whole] == [type(e) for e in pieces]
    for one, other in zip(whole, pieces, strict=True):
        if isinstance(one, Dial) and isinstance(other, Dial):
            assert (one.host, one.port, one.protocol) == (other.host, other.port, other.protocol)
            assert 0 < one.port < 65536
            assert one.host.isprintable()
            assert one.early.startswith(other.early)
        else:
            assert one == other
