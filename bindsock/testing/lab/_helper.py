"""The helper of the laboratory's processes: it has imported what they need, and forks for each of them.

:mod:`._child` runs it as a script, so it only imports the standard library. It reads from a socket what to run, with the
descriptors of the namespace, of standard input and output, and of what the process is to inherit. It answers with the process's
number and a descriptor that refers to it. The helper ends when the other end of the socket is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x40000000
_MOST_DESCRIPTORS = 8


def main(requests: socket.socket) -> None:
    scripts = {name: _imported(name) for name in ("_server", "_tunnel")}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the processes
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, 1 << 12, _MOST_DESCRIPTORS)
        if not data:
            return
        request = json.loads(data)
        pid = os.fork()
        if pid == 0:
            requests.close()
            _become(scripts[request["script"]], request["arguments"], *descriptors)
        # Before the answer: whoever ends the process at once may rely on it that nobody holds its TUN device any more.
        for descriptor in descriptors:
            os.close(descriptor)
        process = os.pidfd_open(pid)  # type: ignore[attr-defined, unused-ignore]  # Linux only
        socket.send_fds(requests, [json.dumps(pid).encode()], [process])
        os.close(process)


def _imported(name: str) -> Any:
    """Import a script of this folder, without the package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def _become(script: Any, arguments: list[str], namespace: int, commands: int, answers: int, *inherited: int) -> None:
    """Run a script in this new process, and end it."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # A session of its own, so that Ctrl-C in the terminal does not end it: the laboratory's process ends it orderly.
        os.setsid()
        if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.dup2(commands, 0)
        os.dup2(answers, 1)
        for descriptor in (namespace, commands, answers):
            os.close(descriptor)
        script.run(*arguments, *inherited)
        status = 0
    except BaseException:  # noqa: BLE001 - nothing may return into the helper
        traceback.print_exc()
    finally:
        os._exit(status)  # the interpreter's normal exit would keep a TUN device for another 20 ms


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError):  # the process of the laboratory has ended
        main(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)
