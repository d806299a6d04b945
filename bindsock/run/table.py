"""The table of all patches: which module they patch, and what they cover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bindsock.run import libraries, loops, programs, sockets

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable
    from types import ModuleType

    from bindsock.run.background import Background
    from bindsock.run.ledger import Ledger
    from bindsock.run.policy import RunPolicy


@dataclass(frozen=True, slots=True)
class Context:
    """What the patches share.

    ``undo`` gets a callback for each change, which reverts it; ``ledger`` counts the outcomes of connections.
    """

    policy: RunPolicy
    ledger: Ledger
    background: Background
    undo: contextlib.ExitStack


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch: as soon as the module is imported, ``apply`` patches it."""

    module: str
    covers: str
    apply: Callable[[Context, ModuleType], None]


UNCOVERED = {
    "MySQLdb": "its connections are made in C",
    "gevent": "its connections are made by _socket",
    "psycopg": "its connections are made by libpq, in C",
    "psycopg2": "its connections are made by libpq, in C",
    "pycurl": "its connections are made by libcurl, in C",
}
"""Libraries whose connections cannot be covered, and why. A program that imports one gets a warning."""

PATCHES = (
    Patch("socket", "blocking sockets", sockets.patch),
    Patch("asyncio", "asyncio", loops.patch_asyncio),
    Patch("uvloop", "uvloop", loops.patch_uvloop),
    Patch("trio", "trio", libraries.patch_trio),
    Patch("grpc", "gRPC", libraries.patch_grpc),
    Patch("pycares", "c-ares", libraries.patch_pycares),
    Patch("subprocess", "Python child processes", programs.patch),
)
