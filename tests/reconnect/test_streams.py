"""The replaceable reader reads as asyncio's reader does, and its buffer can be emptied while a read waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindsock.reconnect.streams import ReplaceableReader

LIMIT = 16


class Flow:
    """A fake transport that only records whether it is paused."""

    def __init__(self) -> None:
        self.paused = False
        self.pauses = 0

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True
        self.pauses += 1

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False


def reader() -> ReplaceableReader:
    return ReplaceableReader(LIMIT, asyncio.get_running_loop())


async def fate(call: Awaitable[bytes]) -> object:
    try:
        return await call
    except asyncio.IncompleteReadError as error:
        return "incomplete", error.partial, error.expected
    except asyncio.LimitOverrunError as error:
        return "overrun", error.consumed
    except (ValueError, OSError) as error:
        return type(error)


@given(
    pieces=st.lists(st.text("ab\n", max_size=12).map(str.encode), max_size=6),
    calls=st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(-1, 20)),
            st.tuples(st.just("readexactly"), st.integers(0, 20)),
            st.tuples(st.just("readline")),
            st.tuples(st.just("readuntil"), st.sampled_from([b"\n", b"a\n", b"ab"])),
        ),
        max_size=5,
    ),
)
def test_it_reads_as_asyncios_own(pieces: list[bytes], calls: list[tuple[Any, ...]]) -> None:
    async def outcome(under_test: asyncio.StreamReader) -> list[object]:
        async def feed() -> None:
            for piece in pieces:
                under_test.feed_data(piece)
                await asyncio.sleep(0)
            under_test.feed_eof()

        feeding = asyncio.ensure_future(feed())
        fates = [await fate(getattr(under_test, name)(*arguments)) for name, *arguments in calls]
        await feeding
        return [*fates, await under_test.read(), under_test.at_eof()]

    async def compare() -> None:
        assert await outcome(reader()) == await outcome(asyncio.StreamReader(limit=LIMIT))

    asyncio.run(compare())


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda r: r.readline(), b"new\n"),
        (lambda r: r.readuntil(b"\n"), b"new\n"),
        (lambda r: r.readexactly(4), b"new\n"),
        (lambda r: r.read(), b"new\nand more"),
    ],
)
async def test_one_who_waits_gets_nothing_of_what_was_taken(
    call: Callable[[asyncio.StreamReader], Awaitable[bytes]], expected: bytes
) -> None:
    under_test = reader()
    under_test.feed_data(b"old" if expected == b"new\n" else b"old without end")
    waiting = asyncio.ensure_future(call(under_test))
    await asyncio.sleep(0)
    assert under_test.take() in (b"old", b"old without end")
    under_test.feed_data(b"new\n")
    await asyncio.sleep(0)
    under_test.feed_data(b"and more")
    under_test.feed_eof()
    assert await waiting == expected


async def test_one_who_waits_fails_with_the_connection() -> None:
    under_test = reader()
    waiting = asyncio.ensure_future(under_test.readline())
    await asyncio.sleep(0)
    under_test.set_exception(ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        await waiting
    with pytest.raises(ConnectionResetError):
        await under_test.read(1)


async def test_one_at_a_time() -> None:
    under_test = reader()
    waiting = asyncio.ensure_future(under_test.readline())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="already waiting"):
        await under_test.read(1)
    waiting.cancel()
    await asyncio.sleep(0)
    under_test.feed_data(b"x\n")
    assert await under_test.readline() == b"x\n"


async def test_a_slow_reader_holds_the_transport_up() -> None:
    under_test, flow = reader(), Flow()
    under_test.set_transport(flow)  # type: ignore[arg-type]
    under_test.feed_data(bytes(2 * LIMIT + 1))
    assert flow.paused
    await under_test.read(LIMIT + 1)
    assert not flow.paused
    under_test.feed_data(bytes(2 * LIMIT))
    assert flow.paused
    under_test.take()
    assert not flow.paused


async def test_who_wants_much_does_not_hold_the_transport_up() -> None:
    under_test, flow = reader(), Flow()
    under_test.set_transport(flow)  # type: ignore[arg-type]
    waiting = asyncio.ensure_future(under_test.readexactly(10 * LIMIT))
    await asyncio.sleep(0)
    for _ in range(5):
        under_test.feed_data(bytes(2 * LIMIT))
        await asyncio.sleep(0)
    assert await waiting == bytes(10 * LIMIT)
    assert flow.pauses == 0


async def test_lines_by_iteration() -> None:
    under_test = reader()
    under_test.feed_data(b"one\ntwo\n")
    under_test.feed_eof()
    assert [line async for line in under_test] == [b"one\n", b"two\n"]
