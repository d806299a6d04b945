"""The path manager's orders, without a kernel that carries them out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from bindsock.errors import KernelError
from bindsock.kernel.linux import sockets
from bindsock.kernel.linux.mptcp import commands, path_manager, sock_diag
from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.kernel.linux.mptcp.commands import Commands, Endpoint
from bindsock.kernel.linux.mptcp.path_manager import PathManager
from bindsock.kernel.linux.mptcp.sock_diag import ListedSubflow
from bindsock.model.network import IPAddress
from bindsock.model.subflows import Endpoints, Subflow
from bindsock.testing import interface
from tests.linux.namespaces import inside, new_namespace

HERE = ip_address("192.0.2.1")
THERE = ip_address("198.51.100.1")
WIRED = interface("3: en1 wired 192.0.2.1/24")


class Held:
    """A background in which a call waits until the test lets it be made."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[[], Any], Callable[[Any], object]]] = []

    @property
    def busy(self) -> bool:
        return bool(self.calls)

    def submit(self, call: Callable[[], Any], done: Callable[[Any], object]) -> None:
        self.calls.append((call, done))

    def in_turn(self, call: Callable[[], object]) -> None:
        call()

    def join(self) -> None:
        self.calls.clear()

    def make(self) -> None:
        """Make the first call."""
        call, done = self.calls.pop(0)
        try:
            outcome = call()
        except Exception as error:  # noqa: BLE001 - handed over, as by a worker
            outcome = error
        done(outcome)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that were given. There is no endpoint in the system."""
    commands: list[str] = []

    def endpoints(self: Commands) -> list[Endpoint]:
        commands.append("endpoints")
        return []

    def ask(self: Commands, command: int) -> bytes:
        commands.append("limits")
        return bytes(4)

    monkeypatch.setattr(Commands, "endpoints", endpoints)
    monkeypatch.setattr(Commands, "ask", ask)
    monkeypatch.setattr(path_manager, "_is_userspace", lambda: False)
    return commands


def test_an_operation_begins_when_the_one_before_is_finished(told: list[str]) -> None:
    paths = PathManager()
    found: list[Endpoints | OSError] = []
    paths.background = held = Held()
    for _ in range(2):
        paths.endpoints(found.append)
    assert (told, len(held.calls)) == ([], 1)
    held.make()
    assert (found, len(held.calls)) == ([Endpoints()], 1)
    held.make()
    assert (found, len(held.calls)) == ([Endpoints()] * 2, 0)
    assert told == ["limits", "endpoints"] * 2


def test_the_next_operation_waits_for_its_turn(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be one for each of many connections, and most of them may find that there is nothing left to do."""
    later: list[Callable[[], object]] = []
    monkeypatch.setattr(Held, "in_turn", lambda held, call: later.append(call))
    paths = PathManager()
    found: list[Endpoints | OSError] = []
    paths.background = held = Held()
    for _ in range(3):
        paths.endpoints(found.append)
    for number in range(1, 3):
        held.make()
        assert (len(found), len(later), held.calls) == (number, 1, [])
        later.pop()()
        assert len(held.calls) == 1
    held.make()
    assert (len(found), later, held.calls) == (3, [], [])


def test_an_error_is_handed_over_and_the_next_operation_begins(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    paths = PathManager()
    found: list[Endpoints | OSError] = []
    paths.background = held = Held()

    def refuse(self: Commands) -> list[Endpoint]:
        raise PermissionError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Commands, "endpoints", refuse)
        paths.endpoints(found.append)
        held.make()
    assert isinstance(found[0], PermissionError)
    paths.endpoints(found.append)
    held.make()
    assert found[1] == Endpoints()


def refused(error: OSError) -> None:
    pytest.fail(f"the order was refused: {error}")


def test_connections_that_moved_together_are_prompted_together(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt of the in-kernel path manager's is for all connections with a subflow from the address."""
    subflow = Subflow(HERE, 1, ip_address("192.0.2.9"), 2)
    monkeypatch.setattr(mptcp, "token", lambda sock: sock.fileno())
    monkeypatch.setattr(PathManager, "subflows", lambda self, sock: (subflow,))
    monkeypatch.setattr(PathManager, "_is_confirmed", lambda self, sock, subflow: True)
    monkeypatch.setattr(Commands, "prompt_all", lambda self, address: told.append(f"prompt {address}"))
    paths = PathManager()
    paths.background = held = Held()
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(3)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
            assert paths.prompt(sock, HERE, refused)
        while held.calls:
            held.make()
        assert told == [f"prompt {HERE}"]
        assert paths.prompt(socks[0], HERE, refused)
        while held.calls:
            held.make()
        assert told == [f"prompt {HERE}"] * 2


def test_a_peer_that_has_not_confirmed_a_subflow_is_not_prompted_by_it(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    subflow = Subflow(HERE, 1, ip_address("192.0.2.9"), 2)
    monkeypatch.setattr(mptcp, "token", lambda sock: sock.fileno())
    monkeypatch.setattr(PathManager, "subflows", lambda self, sock: (subflow,))
    monkeypatch.setattr(PathManager, "_is_confirmed", lambda self, sock, subflow: False)
    paths = PathManager()
    paths.background = held = Held()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert not paths.prompt(sock, HERE, refused)
        assert held.calls == []


@pytest.mark.parametrize("background", [True, False])
def test_whoever_asks_for_the_endpoints_gets_an_answer_whatever_fails(
    told: list[str], monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    """A dial waits for it without a time limit."""

    def fail(self: Commands) -> list[Endpoint]:
        raise ValueError("nobody expects this")

    paths = PathManager()
    found: list[Endpoints | OSError] = []
    held = Held()
    if background:
        paths.background = held
    with monkeypatch.context() as patch:
        patch.setattr(Commands, "endpoints", fail)
        paths.endpoints(found.append)
        if background:
            held.make()
    assert [type(answer) for answer in found] == [KernelError]
    assert "nobody expects this" in str(found[0])
    paths.endpoints(found.append)
    if background:
        held.make()
    assert found[1:] == [Endpoints()]


def test_the_child_of_a_fork_gets_an_error_instead_of_endpoints(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    paths = PathManager()
    found: list[Endpoints | OSError] = []
    monkeypatch.setattr(os, "getpid", lambda: -1)
    paths.endpoints(found.append)
    assert [type(answer) for answer in found] == [OSError]
    assert told == []


def test_without_a_background_it_is_carried_out_at_once(told: list[str]) -> None:
    found: list[Endpoints | OSError] = []
    PathManager().endpoints(found.append)
    assert found == [Endpoints()]


def test_the_child_of_a_fork_orders_nothing(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    paths = PathManager()
    paths.background = held = Held()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    paths.sweep(lambda waiting: pytest.fail("the endpoints are the parent's"))
    assert held.calls == []


def test_a_socket_that_is_closed_while_an_order_is_carried_out_ends_in_order() -> None:
    address: IPAddress = ip_address("::1")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        ours = socket.create_connection(listener.getsockname()[:2])
        theirs = listener.accept()[0]
    with theirs:
        with path_manager._ending_by_reset([ours], address):
            ours.sendall(b"x")
            ours.close()
        assert theirs.recv(10) == b"x"
        assert theirs.recv(10) == b""


def test_another_programs_subflow_that_joins_in_the_last_moment_ends_by_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an orderly end the kernel would answer the peer's FIN by the routing table."""
    address = ip_address("2001:db8::1")
    log: list[tuple[object, ...]] = []
    joined = ListedSubflow(7, Subflow(address, 1, ip_address("2001:db8:9::9"), 2), established=True, bound=3)
    readings: list[list[ListedSubflow]] = [[], [joined]]
    monkeypatch.setattr(sock_diag, "subflows", lambda channel: readings.pop(0))
    monkeypatch.setattr(sock_diag, "reset", lambda channel, subflow, likely: log.append(("reset", subflow, tuple(likely))))
    monkeypatch.setattr(Commands, "endpoints", lambda self: [Endpoint(address, 5, 0, 3, b"")])
    monkeypatch.setattr(Commands, "remove_endpoint", lambda self, address, identifier: log.append(("remove", identifier)))
    monkeypatch.setattr(sockets, "is_running", lambda index: index == 3)
    paths = PathManager()
    paths._added[address] = path_manager._Added(3)
    paths.sweep(lambda waiting: None)
    assert log == [("reset", joined.subflow, (3,)), ("remove", 5)]
    assert readings == []


class Connection:
    """A connection that the userspace path manager controls, and the orders that the kernel was given for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sock, self._other = socket.socketpair(socket.AF_UNIX)
        self.told: list[str] = []
        self.refusal: OSError | None = None
        self.subflows = [self.subflow(THERE, 1)]
        self.failures: list[OSError] = []
        self.removed: list[bool | OSError] = []
        self.paths = PathManager()
        self.paths.background = self.held = Held()
        monkeypatch.setattr(socket.socket, "getsockname", lambda sock: (str(THERE), 1))
        monkeypatch.setattr(socket.socket, "getpeername", lambda sock: ("203.0.113.9", 443))
        monkeypatch.setattr(path_manager, "_is_userspace", lambda: True)
        monkeypatch.setattr(mptcp, "token", lambda sock: 7)
        monkeypatch.setattr(mptcp, "states", lambda sock: [mptcp.State(subflow, True, 0.0) for subflow in self.subflows])
        monkeypatch.setattr(sockets, "source", lambda interface, remote: HERE)
        monkeypatch.setattr(PathManager, "bound", lambda paths, sock, subflow: 0)
        monkeypatch.setattr(Commands, "tell", self._tell)
        self.paths.register(self.sock)

    @staticmethod
    def subflow(local: IPAddress, port: int) -> Subflow:
        return Subflow(local, port, ip_address("203.0.113.9"), 443)

    def _tell(self, command: int, *body: bytes, harmless: tuple[int, ...] = ()) -> None:
        names = {commands.CMD_SUBFLOW_CREATE: "create", commands.CMD_REMOVE: "remove", commands.CMD_SUBFLOW_DESTROY: "destroy"}
        self.told.append(names[command])
        if self.refusal is not None:
            raise self.refusal

    def add(self) -> None:
        assert self.paths.add(self.sock, WIRED, self.failures.append) == HERE

    def remove(self) -> None:
        assert self.paths.remove(self.sock, HERE, "left", self.removed.append) is None

    def close(self) -> None:
        self.paths.release(self.sock)
        self.sock.close()
        self._other.close()


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    made = Connection(monkeypatch)
    yield made
    made.close()


def test_the_userspace_path_manager_gets_its_orders_in_the_background(connection: Connection) -> None:
    """Every other order waits while any program removes an endpoint from the in-kernel one."""
    connection.add()
    assert connection.told == []
    connection.held.make()
    connection.subflows.append(connection.subflow(HERE, 2))
    connection.remove()
    assert (connection.told, connection.removed) == (["create"], [])
    connection.held.make()
    assert (connection.told, connection.removed) == (["create", "remove", "destroy"], [True])
    assert (connection.failures, connection.held.calls) == ([], [])


def test_a_refused_order_for_one_connection_is_told(connection: Connection) -> None:
    connection.refusal = PermissionError("no")
    connection.add()
    assert connection.failures == []
    connection.held.make()
    assert connection.failures == [connection.refusal]
    connection.subflows.append(connection.subflow(HERE, 2))
    connection.remove()
    connection.held.make()
    assert connection.removed == [connection.refusal]


def test_a_connection_that_has_closed_meanwhile_is_not_told_of_a_refused_order(connection: Connection) -> None:
    """The kernel does not know its token any more."""
    connection.refusal = OSError(errno.EINVAL, "invalid token")
    connection.add()
    connection.close()
    connection.held.make()
    assert (connection.told, connection.failures) == (["create"], [])


def test_no_order_is_given_for_a_connection_that_has_closed_before_its_turn(connection: Connection) -> None:
    connection.add()
    connection.add()
    connection.remove()
    connection.close()
    while connection.held.busy:
        connection.held.make()
    assert (connection.told, connection.failures, connection.removed) == (["create"], [], [True])


def test_an_order_finds_the_subflow_that_the_one_before_it_has_made(connection: Connection) -> None:
    connection.add()
    connection.add()
    connection.subflows.append(connection.subflow(HERE, 2))
    connection.held.make()
    assert (connection.told, connection.held.calls) == (["create"], [])


def test_the_subflow_of_an_address_to_which_the_connection_comes_back_stays(connection: Connection) -> None:
    connection.add()
    connection.remove()
    connection.add()
    connection.subflows.append(connection.subflow(HERE, 2))
    connection.held.make()
    assert (connection.told, connection.removed, connection.held.calls) == (["create"], [True], [])


def test_a_subflow_that_is_being_ended_does_not_count(connection: Connection) -> None:
    """If its address is needed again, another one is ordered."""
    connection.subflows.append(connection.subflow(HERE, 2))
    connection.remove()
    assert connection.paths.subflows(connection.sock) == (connection.subflow(THERE, 1),)
    connection.add()
    connection.subflows.pop()
    connection.held.make()
    assert (connection.told, connection.removed) == (["remove", "destroy"], [True])
    connection.held.make()
    assert (connection.told, connection.failures) == (["remove", "destroy", "create"], [])


def test_a_forbidden_subflow_is_reset_at_once(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[Subflow] = []
    monkeypatch.setattr(PathManager, "_reset", lambda paths, sock, subflows: reset.extend(subflows))
    connection.subflows.append(connection.subflow(HERE, 2))
    assert connection.paths.remove(connection.sock, HERE, "forbidden", connection.removed.append)
    assert (reset, connection.told) == ([connection.subflow(HERE, 2)], [])
    connection.subflows.pop()
    connection.refusal = OSError(errno.EIO, "no")
    connection.held.make()
    assert (connection.told, connection.removed) == (["remove"], [])


def test_another_event_loop_does_not_wait_for_the_orders_of_a_closed_one(connection: Connection) -> None:
    connection.add()
    connection.add()
    connection.paths.background = other = Held()
    connection.add()
    assert len(other.calls) == 1
    other.make()
    assert (connection.told, connection.failures, other.calls) == (["create"], [], [])


@pytest.fixture
def own_namespace() -> Iterator[None]:
    """A network namespace that no other process locks meanwhile."""
    try:
        namespace = new_namespace()
    except PermissionError as refused:
        pytest.skip(f"no network namespaces here: {refused}")
    try:
        with inside(namespace):
            yield
    finally:
        os.close(namespace)


@pytest.mark.usefixtures("own_namespace")
def test_an_event_loop_that_ends_while_the_namespace_is_locked_leaves_it_unlocked(told: list[str]) -> None:
    paths = PathManager()
    paths.background = held = Held()
    paths.sweep(lambda _: None)
    lock, _ = held.calls.pop()
    lock()
    paths.background = None
    with open("/proc/thread-self/ns/net", encoding="ascii") as namespace:
        fcntl.flock(namespace, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_endpoint_that_was_added_as_the_event_loop_ended_is_swept_later(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[IPAddress] = []
    removed: list[IPAddress] = []
    monkeypatch.setattr(path_manager, "_is_userspace", lambda: False)
    monkeypatch.setattr(sock_diag, "subflows", lambda channel: [])
    monkeypatch.setattr(Commands, "remove_endpoint", lambda _, address, identifier: removed.append(address))
    monkeypatch.setattr(Commands, "add_endpoint", lambda _, address, index: added.append(address))
    monkeypatch.setattr(Commands, "endpoints", lambda _: [Endpoint(HERE, 1, 0, 3, b"")] if added else [])
    paths = connection.paths
    paths.release(connection.sock)
    paths.register(connection.sock)
    connection.add()
    while True:
        call, done = connection.held.calls.pop(0)
        outcome = call()
        if added:
            break  # nobody hears of it
        done(outcome)
    paths.background = None
    paths.release(connection.sock)
    paths.sweep(lambda _: None)
    assert (added, removed) == ([HERE], [HERE])


class Marked:
    """Two connections at ``HERE``, where there is an endpoint, which the in-kernel path manager controls.

    Everything is carried out at once.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.told: list[tuple[str, bool]] = []
        self.paths = PathManager(clock=lambda: self.now)
        self.socks = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        monkeypatch.setattr(socket.socket, "getsockname", lambda sock: (str(THERE), 1))
        monkeypatch.setattr(path_manager, "_is_userspace", lambda: False)
        monkeypatch.setattr(mptcp, "token", lambda sock: sock.fileno())
        monkeypatch.setattr(mptcp, "states", lambda sock: [])
        monkeypatch.setattr(sock_diag, "subflows", lambda channel: [self.subflow(sock) for sock in self.socks])
        monkeypatch.setattr(sockets, "existing", lambda indexes: indexes)
        monkeypatch.setattr(Commands, "set_all_backup", lambda _, address, *, backup: self.told.append((str(address), backup)))
        monkeypatch.setattr(Commands, "prompt_all", lambda _, address: self.told.append((str(address), True)))
        for sock in self.socks:
            self.paths.register(sock)
        self.paths._added[HERE] = path_manager._Added(3)

    @staticmethod
    def subflow(sock: socket.socket) -> ListedSubflow:
        return ListedSubflow(sock.fileno(), Subflow(HERE, 1, ip_address("203.0.113.9"), 443), established=True, bound=3)

    def set_backup(self, number: int, address: IPAddress = HERE, *, backup: bool = True) -> bool | OSError:
        found: list[bool | OSError] = []
        self.paths.set_backup(self.socks[number], address, found.append, backup=backup)
        return found[0]

    def sweep(self) -> None:
        self.paths.sweep(lambda waiting: None)

    def close(self) -> None:
        self.paths._added.clear()
        for sock in self.socks:
            self.paths.release(sock)
            sock.close()


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Marked]:
    made = Marked(monkeypatch)
    yield made
    made.close()


def test_an_endpoint_is_marked_as_a_backup_until_the_last_connection_has_left(marked: Marked) -> None:
    assert [marked.set_backup(number) for number in (0, 1)] == [True, True]
    assert marked.told == [(str(HERE), True)]
    marked.paths.remove(marked.socks[0], HERE, "left", lambda outcome: None)
    marked.sweep()
    assert marked.told == [(str(HERE), True)], "the other one is still leaving"
    assert marked.set_backup(1, backup=False) is True
    assert marked.told == [(str(HERE), True), (str(HERE), False)]


def test_an_endpoint_that_stays_for_another_connection_is_marked_no_more(marked: Marked) -> None:
    assert marked.set_backup(0) is True
    marked.paths.remove(marked.socks[0], HERE, "left", lambda outcome: None)
    marked.sweep()
    assert HERE in marked.paths._added
    assert marked.told == [(str(HERE), True), (str(HERE), False)]


def test_an_address_without_an_endpoint_of_ours_becomes_no_backup(marked: Marked) -> None:
    """It has none, or the system's."""
    assert marked.set_backup(0, THERE) is False
    assert marked.told == []


def test_peers_are_told_again_of_a_backup_once_for_all_connections(marked: Marked) -> None:
    for moment, times in [(100.0, 1), (100.1, 1), (100.3, 2), (100.6, 3)]:
        marked.now = moment
        assert [marked.set_backup(number) for number in (0, 1)] == [True, True]
        assert marked.told == [(str(HERE), True)] * times
