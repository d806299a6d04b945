"""What a program sees of a stream over which a test server sends back what it receives."""

from __future__ import annotations

import asyncio

import pytest

from bindsock import InterfaceChanged

Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def ended(reader: asyncio.StreamReader) -> InterfaceChanged:
    """The error that a pending read raises."""
    with pytest.raises(InterfaceChanged) as caught:
        async with asyncio.timeout(20):
            await reader.readline()
    return caught.value


async def works(connected: Connected) -> bool:
    """Whether a line comes back."""
    reader, writer = connected
    writer.write(b"ping\n")
    async with asyncio.timeout(20):
        return await reader.readline() == b"ping\n"
