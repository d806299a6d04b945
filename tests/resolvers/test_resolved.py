"""systemd-resolved, with a fake of its socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from bindsock.netmon.watcher import Watcher
from bindsock.resolvers import Answer, NoResolver, ResolvedLookup

Say = Callable[[dict[str, Any]], bytes | None]


@contextlib.asynccontextmanager
async def resolved(path: Path, say: Say) -> AsyncIterator[str]:
    """A Varlink server with one method. It ends when its conversations have ended, also in Python 3.11."""
    conversations: list[asyncio.Task[Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        conversations.append(task)
        with contextlib.suppress(asyncio.IncompleteReadError):
            call = json.loads((await reader.readuntil(b"\0"))[:-1])
            answer = say(call)
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
        writer.close()

    name = str(path / "io.systemd.Resolve")
    async with await asyncio.start_unix_server(serve, name):
        yield name
        # Those before it have been accepted when the last one is.
        reader, writer = await asyncio.open_unix_connection(name)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await asyncio.gather(*conversations)


def reply(**parameters: Any) -> bytes:
    return json.dumps({"parameters": parameters}).encode() + b"\0"


def refusal(error: str, **parameters: Any) -> bytes:
    return json.dumps({"error": f"io.systemd.Resolve.{error}", "parameters": parameters}).encode() + b"\0"


async def test_the_question_names_the_interface_and_the_addresses_are_understood(tmp_path: Path, watcher: Watcher) -> None:
    calls = []

    def say(call: dict[str, Any]) -> bytes:
        calls.append(call)
        link_local = [0xFE, 0x80, *[0] * 13, 1]
        return reply(
            addresses=[
                {"ifindex": 7, "family": 2, "address": [192, 0, 2, 1]},
                {"ifindex": 7, "family": 10, "address": [0x20, 0x01, 0x0D, 0xB8, *[0] * 11, 1]},
                {"ifindex": 7, "family": 10, "address": link_local},
            ],
            name="example.com",
            flags=1,
        )

    async with resolved(tmp_path, say) as path:
        lookup = ResolvedLookup(path)
        assert await lookup("example.com.", socket.AF_INET, 7, watcher) == Answer((ip_address("192.0.2.1"),))
        answer = await lookup("example.com", socket.AF_INET6, 7, watcher)
    assert answer == Answer((ip_address("2001:db8::1"), ip_address("fe80::1%7")))
    assert calls == [
        {
            "method": "io.systemd.Resolve.ResolveHostname",
            "parameters": {"name": "example.com", "family": family, "ifindex": 7, "flags": 0},
        }
        for family in (2, 10)
    ]


async def test_a_name_without_addresses_of_the_family_has_none(tmp_path: Path, watcher: Watcher) -> None:
    async with resolved(tmp_path, lambda call: refusal("NoSuchResourceRecord")) as path:
        assert await ResolvedLookup(path)("example.com", socket.AF_INET6, 7, watcher) == Answer(())


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (refusal("DNSError", rcode=3), socket.EAI_NONAME),
        (refusal("DNSError", rcode=2), socket.EAI_AGAIN),
        (refusal("QueryTimedOut"), socket.EAI_AGAIN),
        (b"[]\0", socket.EAI_AGAIN),
        (b"{\0", socket.EAI_AGAIN),
        (b"", socket.EAI_AGAIN),
        (b"{}\0", socket.EAI_AGAIN),
        (reply(addresses=[{"family": 2, "address": [1, 2, 3]}]), socket.EAI_AGAIN),
        (reply(addresses=[{"family": 99, "address": [1, 2, 3, 4]}]), socket.EAI_AGAIN),
        (reply(addresses=[{"family": 2, "address": [1, 2, 3, 400]}]), socket.EAI_AGAIN),
        (reply(addresses=7), socket.EAI_AGAIN),
    ],
)
async def test_failures_are_those_of_getaddrinfo(tmp_path: Path, watcher: Watcher, answer: bytes, code: int) -> None:
    async with resolved(tmp_path, lambda call: answer) as path:
        with pytest.raises(socket.gaierror) as error:
            await ResolvedLookup(path)("example.com", socket.AF_INET, 7, watcher)
    assert error.value.errno == code


async def test_no_answer_is_waited_for_no_longer_than_said(tmp_path: Path, watcher: Watcher) -> None:
    async with resolved(tmp_path, lambda call: None) as path:
        with pytest.raises(socket.gaierror, match=r"within 0.05 s"):
            await ResolvedLookup(path, timeout=0.05)("example.com", socket.AF_INET, 7, watcher)


async def test_without_it_or_without_a_name_server_another_way_is_to_be_tried(tmp_path: Path, watcher: Watcher) -> None:
    with pytest.raises(NoResolver, match="cannot connect to systemd-resolved"):
        await ResolvedLookup(str(tmp_path / "nobody"))("example.com", socket.AF_INET, 7, watcher)
    async with resolved(tmp_path, lambda call: refusal("NoNameServers")) as path:
        with pytest.raises(NoResolver, match="no name server"):
            await ResolvedLookup(path)("example.com", socket.AF_INET, 7, watcher)
