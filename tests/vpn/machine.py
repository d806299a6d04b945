"""A machine for the programs of a distribution: a namespace of the laboratory with processes and files of its own.

They keep their state where the distribution says (``/etc``, ``/run``, ``/var/lib``) and go to the background by themselves. Here
these directories are the machine's own, and so are its processes: when the first one ends, the kernel ends all others
(``man 7 pid_namespaces``), so no test has to look for what a program has left behind.
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
# bash, since it reaps what is left to it. /sys is read-only as in containers: so those who would wait for udev do not.
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
    """A script failed; the message has what it printed."""


class Machine:
    """One of the laboratory's namespaces, as a machine. Leaving the context ends all that was started on it.

    :param directory: where its scripts run; machines may share it
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
        """End everything that runs on it. Closing twice is harmless."""
        assert self._first.stdin is not None
        assert self._first.stdout is not None
        self._first.stdin.close()
        self._first.wait(_PATIENCE)
        self._first.stdout.close()

    def run(self, script: str) -> str:
        """Run a shell script. What it starts in the background goes on; its directory is the machine's.

        :return: what it printed
        :raises Failed: it ended with another status than 0
        """
        ns = f"/proc/{self._first.pid}/ns"
        enter = ["nsenter", f"--mount={ns}/mnt", f"--uts={ns}/uts", f"--pid={ns}/pid_for_children", f"--net={ns}/net"]
        # A file, not a pipe: a program in the background would keep a pipe open.
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
        """Whether a script ends with status 0."""
        try:
            self.run(script)
        except Failed:
            return False
        return True

    def until(self, condition: str) -> None:
        """Wait until a shell script ends with status 0.

        :raises Failed: it did not
        """
        self.run(f"for i in $(seq 500); do ( {condition} ) >/dev/null 2>&1 && exit 0; sleep 0.05; done; exit 1")


PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs of the administrator are, too."""


def missing(*programs: str) -> str | None:
    """Why programs cannot run here, or ``None``."""
    absent = [p for p in programs if shutil.which(p, path=PATH) is None]
    return f"not installed: {', '.join(absent)}" if absent else None
