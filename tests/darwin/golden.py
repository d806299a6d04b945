"""The recorded kernel: the answers of Apple's network stack, and fakes that replay them."""

from __future__ import annotations

import base64
import functools
import json
import lzma
import os
import struct
import zlib
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsock.kernel.darwin import abi

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PATH = Path(__file__).parent / "data" / "darwin-scenarios.json.xz"

State = dict[str, Any]


@functools.cache
def golden() -> dict[str, Any]:
    """The whole file, which data/README.md describes."""
    data: dict[str, Any] = json.loads(lzma.decompress(_PATH.read_bytes()))
    return data


def states() -> list[State]:
    """The recorded states, named."""
    found: list[State] = golden()["states"]
    return found


def transitions() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = golden()["transitions"]
    return found


def all_states() -> Iterator[tuple[str, State]]:
    """The named states, and the abridged states before, during and after the transitions."""
    for state in states():
        yield state["name"], state
    for transition in transitions():
        yield f"{transition['name']} before", transition["before"]
        for number, step in enumerate(transition["steps"]):
            if "state" in step:
                yield f"{transition['name']} step {number}", step["state"]
        yield f"{transition['name']} after", transition["after"]


def messages_of(state: State) -> list[str]:
    """The messages of a state's dumps, in hex."""
    own = state.get("messages")
    if own is None:
        shared: list[str] = golden()["messages"]
        return shared
    return zlib.decompress(base64.b64decode(own["zlib_base64"])).decode().split("\n")


def dump(state: State, operation: str, family: int = 0) -> bytes | None:
    """A sysctl's value, ``None`` if it was not recorded."""
    indices = state["sysctl"].get(operation, {}).get(str(family))
    if indices is None:
        return None
    messages = messages_of(state)
    return b"".join(bytes.fromhex(messages[index]) for index in indices)


def darwin_error(number: int) -> OSError:
    """An error as :class:`bindsock.kernel.darwin.syscalls.Syscalls` raises it."""
    if number == abi.EAGAIN:
        return BlockingIOError(number, "Resource temporarily unavailable")
    error = OSError(number, f"Darwin errno {number}")
    error.errno = number
    return error


class Queue:
    """A non-blocking socket whose reads return the queued messages."""

    def __init__(self, messages: Sequence[bytes] = ()) -> None:
        self.messages = deque(messages)
        self.options: list[tuple[int, int, int]] = []
        self.ioctls: list[tuple[int, bytes]] = []
        self._reader, self._writer = os.pipe()

    def fileno(self) -> int:
        return self._reader

    def send(self, data: bytes, /) -> int:
        raise darwin_error(abi.EOPNOTSUPP)

    def recv(self, size: int, /) -> bytes:
        if not self.messages:
            raise BlockingIOError
        return self.messages.popleft()[:size]

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        self.options.append((level, option, value))

    def ioctl(self, request: int, argument: bytes, /) -> bytes:
        self.ioctls.append((request, argument))
        return argument

    def close(self) -> None:
        if self._reader != -1:
            os.close(self._reader)
            os.close(self._writer)
        self._reader = -1


class RouteQueue(Queue):
    """A routing socket that answers the recorded questions."""

    def __init__(self, state: State, *, silent: bool = True) -> None:
        super().__init__()
        self._state = state
        self._silent = silent

    def send(self, data: bytes, /) -> int:
        header = abi.rt_msghdr.from_buffer_copy(data)
        if header.rtm_type == abi.RTM_GET_SILENT and not self._silent:
            raise darwin_error(abi.EPERM)
        name = "RTM_GET_SILENT" if header.rtm_type == abi.RTM_GET_SILENT else "RTM_GET"
        for recorded in self._state["rtm_get"].values():
            if _question(bytes.fromhex(recorded["request"])) == _question(data):
                answer = recorded.get(name) or recorded["RTM_GET_SILENT"]
                replies = answer["replies"] if answer["replies"] != "same" else recorded["RTM_GET"]["replies"]
                for reply in replies:
                    message = bytearray.fromhex(reply)
                    struct.pack_into("<ii", message, 16, header.rtm_pid, header.rtm_seq)
                    self.messages.append(bytes(message))
                if answer["errno"]:
                    raise darwin_error(answer["errno"])
                return len(data)
        raise AssertionError("that question was not recorded")


def _question(request: bytes) -> tuple[int, int, bytes]:
    header = abi.rt_msghdr.from_buffer_copy(request)
    scope = header.rtm_index if header.rtm_flags & abi.RTF_IFSCOPE else 0
    return scope, header.rtm_addrs, request[92:]


class Replay:
    """The system calls of a recorded state.

    :param dumps: whether the routing table may be read
    :param silent: whether the kernel supports RTM_GET_SILENT
    """

    def __init__(self, state: State, *, dumps: bool = True, silent: bool = True) -> None:
        self.state = state
        self.dumps = dumps
        self.silent = silent
        self.route_queue: Queue | None = None
        self.event_queue: Queue | None = None
        self._codes = {int(code, 16): name for name, code in golden()["constants"]["ioctl"].items()}

    def ioctl(self, request: int, argument: bytes, /) -> bytes:
        name = argument[:16].split(b"\0", 1)[0].decode()
        recorded = self.state["ioctl"].get(name)
        if recorded is None:
            raise darwin_error(abi.ENXIO)
        reply = recorded["replies"].get(self._codes.get(request))
        if reply is None:
            raise darwin_error(abi.EOPNOTSUPP)
        assert argument.hex() == recorded["request"]
        if reply[0]:
            raise darwin_error(reply[0])
        return bytes.fromhex(reply[1])

    def sysctl(self, mib: Sequence[int], /) -> bytes:
        for name, recorded in golden()["constants"]["sysctl_mib"].items():
            family = mib[3]
            if [family if part == "af" else part for part in recorded] == list(mib):
                if name.startswith("NET_RT_DUMP") and not self.dumps:
                    raise darwin_error(abi.EPERM)
                value = dump(self.state, name, family)
                if value is not None:
                    return value
        raise darwin_error(abi.EINVAL)

    def interfaces(self) -> list[tuple[int, str]]:
        return [(interface["index"], interface["name"]) for interface in self.state["interfaces"]]

    def route_socket(self) -> Queue:
        return self.route_queue if self.route_queue is not None else RouteQueue(self.state, silent=self.silent)

    def event_socket(self) -> Queue:
        return self.event_queue if self.event_queue is not None else Queue()
