"""The program that the demonstration watches."""

from __future__ import annotations

import asyncio
import contextlib

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
