"""A patch for child processes: Python programs are covered in any environment, those that cannot be covered are not started, and
other programs are counted in the ledger."""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING, Any

from bindsock.errors import BindFailed
from bindsock.run.environment import UNLESS, for_children, for_others, is_refused, obstacle, refusal
from bindsock.run.patching import replace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from bindsock.run.table import Context

POSITIONAL = (
    "args", "bufsize", "executable", "stdin", "stdout", "stderr", "preexec_fn", "close_fds", "shell", "cwd", "env",
)  # fmt: skip
"""The first parameters of ``Popen``. Their order is the same in all versions of Python."""


def patch(context: Context, module: ModuleType) -> None:
    """Pass the policy on to child processes that are started with their own environment."""
    initialise = module.Popen.__init__

    @functools.wraps(initialise)
    def __init__(self: Any, *positional: Any, **options: Any) -> None:
        given = {**dict(zip(POSITIONAL, positional, strict=False)), **options}
        changed: dict[str, Any] = {}
        if not isinstance(given.get("args", ()), str | bytes | os.PathLike | list | tuple):  # perhaps it can be read only once
            given["args"] = changed["args"] = list(given["args"])
        reason = _obstacle(given)
        if reason is not None and is_refused(reason):
            context.ledger.note("refused", "programs", reason)
            raise BindFailed(f"not started: {refusal(reason)}", errno=errno.EPERM, call="subprocess.Popen")
        if reason is not None:
            context.ledger.note("left alone", "programs", reason)
        environment = given.get("env")
        if environment is not None:
            environment = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
            changed["env"] = environment | for_children(context.policy, environment)
            if reason is not None and context.policy.proxy is not None:
                changed["env"] |= for_others(context.policy.proxy, environment)
        named = [changed.pop(name, value) for name, value in zip(POSITIONAL, positional, strict=False)]
        initialise(self, *named, *positional[len(POSITIONAL) :], **options | changed)

    replace(context.undo, module.Popen, "__init__", __init__)


def _obstacle(given: Mapping[str, Any]) -> str | None:
    """:func:`obstacle` for the arguments of ``Popen``."""
    if given.get("shell"):
        return f"a shell command; Python programs in it are covered, {UNLESS}"
    args = given.get("args", ())
    words = [args] if isinstance(args, str | bytes | os.PathLike) else list(args)
    if given.get("executable") is not None:
        words[:1] = [given["executable"]]
    if not words:
        return None
    path = os.pathsep.join(os.get_exec_path(given.get("env")))
    return obstacle([os.fsdecode(word) for word in words], path, os.fsdecode(given.get("cwd") or ""))
