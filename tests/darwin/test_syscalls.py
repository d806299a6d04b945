"""The system calls of Darwin, as far as any system can make them."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import sys
from typing import Any

import pytest

from bindsock.kernel.darwin import abi, syscalls
from bindsock.kernel.darwin.syscalls import LiveSyscalls

MIB = (4, 17, 0, 0, 7, 0)


class FakeSysctl:
    """A fake sysctl() that returns these values, one after the other."""

    def __init__(self, *values: bytes) -> None:
        self.values = list(values)
        self.sizes: list[int] = []
        self.failure = 0

    def __call__(self, name: Any, count: int, buffer: Any, size: Any, new: None, new_size: int) -> int:
        assert list(name) == list(MIB)
        assert (count, new, new_size) == (6, None, 0)
        available = size._obj
        if self.failure:
            ctypes.set_errno(self.failure)
            return -1
        if buffer is None:
            available.value = len(self.values[0])
            return 0
        self.sizes.append(available.value)
        value = self.values.pop(0) if len(self.values) > 1 else self.values[0]
        if len(value) > available.value:
            ctypes.set_errno(abi.ENOMEM)
            return -1
        ctypes.memmove(buffer, value, len(value))
        available.value = len(value)
        return 0


class Growing(FakeSysctl):
    """A fake sysctl() that reports too small a size."""

    def __call__(self, name: Any, count: int, buffer: Any, size: Any, new: None, new_size: int) -> int:
        if buffer is None:
            size._obj.value = 1000
            return 0
        return super().__call__(name, count, buffer, size, new, new_size)


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeSysctl) -> LiveSyscalls:
    monkeypatch.setattr(syscalls, "_sysctl", lambda: fake)
    return LiveSyscalls()


def test_the_whole_value_of_a_sysctl_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    assert use(monkeypatch, FakeSysctl(b"x" * 10000)).sysctl(MIB) == b"x" * 10000


def test_a_value_that_has_grown_meanwhile_is_fetched_again_with_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    growing = Growing(b"y" * 100000, b"y" * 100000, b"z" * 100)
    assert use(monkeypatch, growing).sysctl(MIB) == b"z" * 100
    assert growing.sizes == sorted(growing.sizes)
    assert len(growing.sizes) == 3


def test_a_value_that_never_fits_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="memory") as raised:
        use(monkeypatch, Growing(b"x" * 100000)).sysctl(MIB)
    assert raised.value.errno == abi.ENOMEM


def test_the_errno_of_a_sysctl_surfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeSysctl(b"")
    fake.failure = abi.EPERM
    with pytest.raises(PermissionError):
        use(monkeypatch, fake).sysctl(MIB)


def test_the_interfaces_are_those_of_the_machine() -> None:
    assert LiveSyscalls().interfaces() == socket.if_nameindex()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the number and the structure are Linux's")
def test_an_ioctl_reads_and_writes_its_argument() -> None:
    calls = LiveSyscalls()
    answer = calls.ioctl(0x8913, b"lo".ljust(40, b"\0"))
    assert answer[:2] == b"lo"
    assert int.from_bytes(answer[16:18], "little") & 0x8
    with pytest.raises(OSError, match="device") as raised:
        calls.ioctl(0x8913, b"no such thing".ljust(40, b"\0"))
    assert raised.value.errno == 19
    calls.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the number is Linux's")
def test_the_socket_for_ioctls_is_kept_and_closed_with_its_owner() -> None:
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    calls = LiveSyscalls()
    for _ in range(3):
        calls.ioctl(0x8913, b"lo".ljust(40, b"\0"))
    assert len(os.listdir("/dev/fd")) == before + 1
    calls.close()
    assert len(os.listdir("/dev/fd")) == before
    calls.ioctl(0x8913, b"lo".ljust(40, b"\0"))
    del calls
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before
