"""Which commands ``bindsock run`` does not start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bindsock.run.environment import is_refused, obstacle

PROBE = (
    "import sys; print('isolated' if any((sys.flags.isolated, sys.flags.ignore_environment, sys.flags.no_site)) else 'covered')"
)


@pytest.mark.parametrize(
    ("options", "isolating"),
    [
        (["-I"], "I"),
        (["-E"], "E"),
        (["-S"], "S"),
        (["-u", "-bS"], "S"),
        (["-Ic", PROBE], "I"),
        (["-I", "-Wignore"], "I"),
        (["-W", "error", "-I"], "I"),
        (["-bW", "error", "-I"], "I"),
        (["-bWerror", "-I"], "I"),
        (["-uX", "dev", "-E"], "E"),
        (["-Xdev", "-E"], "E"),
        (["--check-hash-based-pycs", "default", "-I"], "I"),
        (["-b-check-hash-based-pycs", "default", "-I"], "I"),
        ([], None),
        (["-u"], None),
        (["-W", "ignore::ImportWarning"], None),
        (["-bWignore::ImportWarning"], None),
        (["-bW", "ignore::ImportWarning"], None),
        (["-X", "importtime=0", "-Xno_debug_ranges"], None),
        (["--check-hash-based-pycs", "default"], None),
        (["-uc'ISE'"], None),
        (["-c", "0", "-I"], None),
        (["-mISE"], None),
        (["-", "-I"], None),
        (["--", "-", "-I"], None),
        (["-IV"], None),
        (["-I", "--version"], None),
        (["-Ih"], None),
        (["-S", "-?"], None),
        (["-E", "--help-env"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_an_interpreter_that_would_not_load_bindsock_is_refused_and_no_other(options: list[str], isolating: str | None) -> None:
    command = [sys.executable, *options, "-c", PROBE]
    reason = obstacle(command)
    assert reason == (isolating and f"python -{isolating} does not load bindsock")
    assert reason is None or is_refused(reason)
    # The interpreter itself agrees.
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout == "isolated\n") == (isolating is not None), done.stdout + done.stderr
