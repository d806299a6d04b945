"""The program that the demonstration watches."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from bindsock.cli.demo.programs import PlainSockets, Program
from tests.waiting import until


async def test_the_answer_to_the_last_report_is_waited_for() -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        with contextlib.suppress(OSError):
            while await reader.readline():
                asked.set()
                await may_answer.wait()
                writer.write(b"noted\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        program = Program("watched", "watched", PlainSockets(), ("127.0.0.1", port, port))
        await program.start()
        await asked.wait()
        stopping = asyncio.create_task(program.stop(drain=20))
        await asyncio.sleep(0)
        may_answer.set()
        await until(lambda: program.reports.answered)
        stopping.cancel()  # it would wait for more datagrams
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        await program.stop()
        assert len(program.reports.answered) == len(program.reports.sent) == 1


class Late(asyncio.DatagramProtocol):
    """Answers nothing until it may, and then everything in order."""

    def __init__(self) -> None:
        self.held: list[tuple[bytes, Any]] = []
        self.may_answer = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.held.append((data, addr))
        if self.may_answer:
            self.answer()

    def answer(self) -> None:
        self.may_answer = True
        for data, addr in self.held:
            self.transport.sendto(b"127.0.0.1 1 " + data, addr)
        self.held.clear()


async def test_the_answers_to_the_last_datagrams_are_waited_for_and_no_longer() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        with contextlib.suppress(OSError):
            while await reader.readline():
                writer.write(b"noted\n")
        writer.close()

    loop = asyncio.get_running_loop()
    transport, late = await loop.create_datagram_endpoint(Late, local_addr=("127.0.0.1", 0))
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        ports = (transport.get_extra_info("sockname")[1], server.sockets[0].getsockname()[1])
        program = Program("watched", "watched", PlainSockets(), ("127.0.0.1", *ports))
        await program.start()
        await until(lambda: len(late.held) > 2)
        stopping = asyncio.create_task(program.stop(drain=3600))
        await asyncio.sleep(0)
        sent = set(program.telemetry.sent)
        late.answer()
        async with asyncio.timeout(60):
            await stopping
        assert sent <= program.telemetry.answered.keys()
    transport.close()
