"""A machine for the programs of a distribution: a namespace of the laboratory with its own processes and files.

The programs keep their state in the distribution's directories (``/etc``, ``/run``, ``/var/lib``) and go to the background by
themselves. Each machine has its own such directories and its own processes: when its first process ends, the kernel ends all
others (``man 7 pid_namespaces``), so no test has to search for the remains of a program.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from bindsock.testing.lab import Lab
    from bindsock.testing.lab._lab import Namespace

_PATIENCE = 40.0
# bash, since it reaps orphaned processes. /sys is read-only, as in containers: then no program waits for udev.
_FIRST_PROCESS = """
set -e
mount -t proc proc /proc
mount -t sysfs -o ro sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mkdir /var/lib/dhcp /var/lib/dhcpcd /var/lib/misc /var/lib/NetworkManager /var/lib/ocserv
cp -a /etc /run/etc
mount --bind /run/etc /etc
echo ready
while read -r line; do :; done
"""


class Failed(RuntimeError):
    """A script failed. The message has its output."""


class Machine:
    """One of the laboratory's namespaces, as a machine. Leaving the context ends all its processes.

    :param directory: the directory in which its scripts run; machines may share it
    """

    def __init__(self, lab: Lab, namespace: Namespace, directory: Path) -> None:
        self._log = directory / f"{namespace}.log"
        self._directory = directory
        with lab.inside(namespace), self._log.open("ab") as log:
            self._first = subprocess.Popen(
                ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "bash", "-c", _FIRST_PROCESS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._first.stdout is not None
        if self._first.stdout.readline() != b"ready\n":
            self.close()
            raise Failed(self._log.read_text())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all processes of the machine. Closing twice is allowed."""
        assert self._first.stdin is not None
        assert self._first.stdout is not None
        self._first.stdin.close()
        self._first.wait(_PATIENCE)
        self._first.stdout.close()

    def run(self, script: str) -> str:
        """Run a shell script in the machine's directory. Its background processes continue.

        :return: its output
        :raises Failed: its exit status was not 0
        """
        ns = f"/proc/{self._first.pid}/ns"
        enter = ["nsenter", f"--mount={ns}/mnt", f"--uts={ns}/uts", f"--pid={ns}/pid_for_children", f"--net={ns}/net"]
        # A file, not a pipe: a background process would keep a pipe open.
        begin = self._log.stat().st_size
        with self._log.open("ab") as log:
            status = subprocess.run(
                [*enter, "sh", "-ec", f"cd {shlex.quote(str(self._directory))}\n{textwrap.dedent(script)}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=_PATIENCE,
                check=False,
                start_new_session=True,
            ).returncode
        output = self._log.read_bytes()[begin:].decode(errors="replace")
        if status != 0:
            raise Failed(f"status {status} of {script.strip()}\n{output}")
        return output

    def succeeds(self, script: str) -> bool:
        """Whether a script's exit status is 0."""
        try:
            self.run(script)
        except Failed:
            return False
        return True

    def until(self, condition: str) -> None:
        """Repeat a shell script until its exit status is 0.

        :raises Failed: it was not 0 in time
        """
        self.run(f"for i in $(seq 500); do ( {condition} ) >/dev/null 2>&1 && exit 0; sleep 0.05; done; exit 1")


PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The search path for programs, with those of the administrator."""


def missing(*programs: str) -> str | None:
    """The reason why the programs cannot run here, ``None`` if they can."""
    absent = [p for p in programs if shutil.which(p, path=PATH) is None]
    return f"not installed: {', '.join(absent)}" if absent else None
