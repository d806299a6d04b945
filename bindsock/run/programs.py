"""A patch for child processes: Python programs are covered in any environment, those that cannot be covered are not started, and
other programs are counted in the ledger."""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING, Any

from bindsock.errors import BindFailed
from bindsock.run.environment import UNLESS, for_children, for_others, is_refused, obstacle
from bindsock.run.patching import replace

if TYPE_CHECKING:
    from types import ModuleType

    from bindsock.run.table import Context


def patch(context: Context, module: ModuleType) -> None:
    """Pass the policy on to child processes that are started with their own environment."""
    initialise = module.Popen.__init__

    @functools.wraps(initialise)
    def __init__(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        reason = _obstacle(args, options)
        if reason is not None and is_refused(reason):
            context.ledger.note("refused", "programs", reason)
            message = f"not started: {reason}, so its connections would not be bound"
            raise BindFailed(message, errno=errno.EPERM, call="subprocess.Popen")
        if reason is not None:
            context.ledger.note("left alone", "programs", reason)
        environment = options.get("env")
        if environment is not None:
            environment = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
            options["env"] = environment | for_children(context.policy, environment)
            if reason is not None and context.policy.proxy is not None:
                options["env"] |= for_others(context.policy.proxy, environment)
        initialise(self, args, *rest, **options)

    replace(context.undo, module.Popen, "__init__", __init__)


def _obstacle(args: Any, options: dict[str, Any]) -> str | None:
    if options.get("shell"):
        return f"a shell command; Python programs in it are covered, {UNLESS}"
    words = [args] if isinstance(args, str | bytes | os.PathLike) else list(args)
    if options.get("executable") is not None:
        words[:1] = [options["executable"]]
    if not words:
        return None
    return obstacle([os.fsdecode(word) for word in words], (options.get("env") or os.environ).get("PATH"))
