"""Network namespaces that are kept by file descriptors.

They have no names, so they need not be removed: a namespace disappears with the last descriptor, socket and process in it, even
after SIGKILL. ``os.setns`` needs Python 3.12, so this module uses ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ._netlink import IFF_UP, Netlink, link_flags

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_OWN_NAMESPACE = "/proc/thread-self/ns/net"
_PROBE = (
    "import ctypes, os\n"
    "libc = ctypes.CDLL(None, use_errno=True)\n"
    # In two calls: AppArmor may allow to make a user namespace but give no rights in it.
    f"if libc.unshare({_CLONE_NEWUSER}) or libc.unshare({_CLONE_NEWNET}): os._exit(ctypes.get_errno())"
)


class LabUnavailable(RuntimeError):
    """The laboratory, or the requested part of it, cannot run here. The message tells why."""


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def available(*, vpn: bool = False) -> str | None:
    """Why the laboratory cannot run in this process.

    :param vpn: whether its VPN must be able to run, too
    :return: the reason as a sentence; ``None`` if it can run
    """
    if not Path(_OWN_NAMESPACE).exists():
        return "the laboratory needs Linux: this system has no network namespaces"
    try:
        os.close(new_namespace())
    except PermissionError:
        return (
            "the laboratory needs root, or a user namespace: call bindsock.testing.lab.enter_user_namespace() before the first "
            "thread starts, or run `python -m bindsock.testing.lab COMMAND`"
        )
    except OSError as exc:
        return f"cannot make a network namespace: {exc.strerror}"
    if vpn and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "the laboratory's VPN needs access to /dev/net/tun"
    return None


def enter_user_namespace() -> None:
    """Become root of a new user namespace permanently, unless this process can already make network namespaces.

    The process then has no network except a loopback of its own, since root of a user namespace cannot return to the outer
    network namespace. Only a process with a single thread can do it (``linux kernel/fork.c``, ``ksys_unshare``), so call it
    early.

    :raises LabUnavailable: it is not possible; the process is unchanged
    """
    obstacle = available()
    if obstacle is None:
        return
    if not Path(_OWN_NAMESPACE).exists():
        raise LabUnavailable(obstacle)
    if not _single_threaded():
        raise LabUnavailable("a process with several threads cannot enter a user namespace")
    try:
        probe = subprocess.run([sys.executable, "-I", "-S", "-c", _PROBE], check=False)
    except OSError as exc:
        raise LabUnavailable(f"{sys.executable} cannot be started: {exc.strerror}") from exc
    if probe.returncode != 0:
        raise LabUnavailable(f"this process is not root and may not make user namespaces: {os.strerror(probe.returncode)}")
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1", encoding="ascii")
    _call("unshare", _CLONE_NEWNET)
    with Netlink() as netlink:
        netlink.request(link_flags(netlink.link("lo").index, IFF_UP, IFF_UP))


def _single_threaded() -> bool:
    """Whether this is the process's only thread. It waits for threads that Python has joined but the kernel has not ended yet."""
    deadline = time.monotonic() + 1.0
    while len(os.listdir("/proc/self/task")) > 1:
        if threading.active_count() > 1 or time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def new_namespace() -> int:
    """Make a network namespace.

    :return: a descriptor that keeps it; the caller closes it
    :raises OSError: the system refused
    """
    result: list[int | OSError] = []

    def make() -> None:
        try:
            _call("unshare", _CLONE_NEWNET)
            result.append(os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as exc:
            result.append(exc)

    # In a new thread: if the caller's thread failed to return, it would stay in the new namespace.
    thread = threading.Thread(target=make, name="bindsock-lab-unshare")
    thread.start()
    thread.join()
    if isinstance(result[0], OSError):
        raise result[0]
    return result[0]


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Move the current thread into the namespace.

    Sockets made and threads and processes started meanwhile belong to it permanently.

    :param namespace: a descriptor that refers to it
    """
    before = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("setns", namespace, _CLONE_NEWNET)
        try:
            yield
        finally:
            _call("setns", before, _CLONE_NEWNET)
    finally:
        os.close(before)
