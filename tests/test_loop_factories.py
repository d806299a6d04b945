"""The event loops that the tests run on."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import Uvloop


def test_a_server_that_is_left_open_is_told_of_once_uvloop_is_closed() -> None:
    loop = Uvloop()
    server = loop.run_until_complete(loop.create_server(asyncio.Protocol, "127.0.0.1", 0))
    assert server.is_serving()
    with pytest.raises(ResourceWarning, match="unclosed resource <TCPServer"):
        loop.close()
    assert loop.is_closed()
