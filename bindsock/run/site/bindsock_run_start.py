"""Installs bindsock in this process, and then runs the ``sitecustomize`` that it would have had without bindsock.

If the installation fails, the process ends, since the program must not run uncovered. (:mod:`site` would print the error and go
on.)
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
import traceback

_HERE = os.path.dirname(__file__)
_FAILED = 3


def _install() -> None:
    from_environment = os.environ.get("BINDSOCK_RUN")
    if from_environment is None:  # the variable was removed and PYTHONPATH kept: do not cover this process
        return
    settings = json.loads(from_environment)
    sys.path.append(settings["place"])
    try:
        from bindsock.run.installation import install_policy
        from bindsock.run.policy import RunPolicy
    finally:
        sys.path.pop()
    install_policy(RunPolicy.from_json(settings["policy"]))


def _run_original() -> None:
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


sys.path[:] = [place for place in sys.path if place != _HERE]
try:
    _install()
except BaseException:  # noqa: BLE001
    sys.stderr.write(f"bindsock run: {sys.executable} cannot be covered and is not started\n{traceback.format_exc()}")
    sys.stderr.flush()
    os._exit(_FAILED)
_run_original()
