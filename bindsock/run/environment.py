"""The environment that makes Python child processes load bindsock: a ``sitecustomize`` at the beginning of their path.

That ``sitecustomize`` runs the one that the child would have had without bindsock, and removes itself from ``sys.path``, so that
the program sees the usual path.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bindsock.run.policy import RunPolicy

VARIABLE = "BINDSOCK_RUN"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY")
"""HTTP_PROXY is left out: curl does not read it, since a web server's client could set it (https://httpoxy.org)."""
_SITE = Path(__file__).parent / "site"
_PYTHON = re.compile(r"(python|pypy)[0-9.]*t?d?(\.exe)?")
_LONG_WITH_VALUE = ("check-hash-based-pycs", "jit")
"""Long options that take the next word as their value: one of CPython, one of PyPy."""
UNLESS = "unless with -I, -E or -S"
"""Which Python programs are not covered if something else than a covered Python program starts them."""


def for_children(policy: RunPolicy, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to an environment so that a Python program is covered."""
    import bindsock

    # The child may use an interpreter without bindsock. bindsock is pure Python and needs no other package.
    place = str(Path(bindsock.__path__[0]).parent)
    others = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place and place != str(_SITE)]
    return {
        VARIABLE: json.dumps({"policy": policy.to_json(), "place": place}),
        "PYTHONPATH": os.pathsep.join([str(_SITE), *others]),
    }


def for_others(proxy: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that tell programs other than Python to use the proxy."""
    return {**dict.fromkeys(PROXY_VARIABLES, proxy), "no_proxy": environment.get("no_proxy", "localhost,127.0.0.1,::1")}


def obstacle(command: Sequence[str], path: str | None = None, directory: str = "") -> str | None:
    """Why a command's own connections are not covered; ``None`` if they are.

    :param path: the search path for programs; that of this process by default
    :param directory: the command's current directory; that of this process by default
    """
    program = _find(command[0], path, directory)
    if _PYTHON.fullmatch(Path(program).name):
        flag = _isolating(command[1:])
        return f"python -{flag} does not load bindsock" if flag is not None else None
    interpreter = _shebang(program)
    for number, word in enumerate(interpreter):
        if _PYTHON.fullmatch(Path(word).name):
            return obstacle(interpreter[number:], path, directory)
    return f"{Path(command[0]).name} is not Python"


def is_refused(reason: str) -> bool:
    """Whether a command with this :func:`obstacle` is not started: it is Python, and would connect unbound."""
    return reason.startswith("python -")


def refusal(reason: str) -> str:
    """Why a command with this :func:`obstacle` is not started, and what to do."""
    option = reason.split()[1]
    return f"{reason}, so its connections would not be bound; run it without 'bindsock run', or without {option}"


def _find(name: str, path: str | None, directory: str) -> str:
    """The program's file. What is relative in the search path is relative to the command's directory, as in ``execvp()``."""
    if os.path.dirname(name):
        return os.path.join(directory, name)
    places = os.get_exec_path() if path is None else path.split(os.pathsep)
    found = shutil.which(name, path=os.pathsep.join(os.path.join(directory, place) for place in places))
    return found or os.path.join(directory, name)


def _isolating(arguments: Sequence[str]) -> str | None:
    """The first option that keeps an interpreter from loading bindsock, by the rules of CPython's ``Python/getopt.c``.

    ``None`` also if the interpreter only prints its version or its help.
    """
    found = None
    words = iter(arguments)
    for word in words:
        if not word.startswith("-") or word in ("-", "--"):
            break
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in "hV?" or (letter == "-" and letters.startswith(("help", "version"))):
                return None
            if letter in "cm":
                return found
            if letter in "WX-":
                if letters in _LONG_WITH_VALUE if letter == "-" else not letters:
                    next(words, None)
                break
            if letter in "EIS" and found is None:
                found = letter
    return found


def _shebang(program: str) -> list[str]:
    """The words of a script's first line; empty if the program is no script."""
    try:
        with Path(program).open("rb") as file:
            first = file.readline(256)
            if first.startswith(b"#!/bin/sh"):
                # If the path to Python is too long or has a space, installers write: '''exec' /the/path/python "$0" "$@"
                first = b"#!" + file.readline(4096).partition(b"exec'")[2].replace(b'"$0" "$@"', b"").replace(b'"', b"")
    except OSError:
        return []
    return first[2:].decode(errors="replace").split() if first.startswith(b"#!") else []
