"""The completions that a shell offers on the tab key, with the script that ``bindsock --print-completion`` prints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Run

BASH = shutil.which("bash")
PRESS_TAB = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_bindsock; printf "%s\\n" "${COMPREPLY[@]}"'


@pytest.fixture
def script(tmp_path: Path, run: Run) -> Path:
    pytest.importorskip("shtab")
    status, out, err = run("--print-completion", "bash")
    assert (status, err) == (0, "")
    path = tmp_path / "completion.bash"
    path.write_text(out)
    return path


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["wat"], {"watch"}),
        (["watch", "--co"], {"--count", "--cost"}),
        (["status", "--cost", "ch"], {"cheapest"}),
        (["explain", "--family", ""], {"4", "6"}),
        (["--print-completion", ""], {"bash", "zsh", "tcsh"}),
    ],
)
def test_commands_options_and_choices_are_completed(script: Path, words: list[str], offered: set[str]) -> None:
    assert BASH is not None
    done = subprocess.run([BASH, "-c", PRESS_TAB, "bash", script, "bindsock", *words], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered


@pytest.mark.skipif(BASH is None or not Path("/sys/class/net/lo").exists(), reason="there is no bash here, or no lo in /sys")
def test_the_machines_interfaces_are_completed(script: Path) -> None:
    assert BASH is not None
    words = ["bindsock", "status", "--interface", "lo"]
    done = subprocess.run([BASH, "-c", PRESS_TAB, "bash", script, *words], capture_output=True, text=True, check=True)
    assert "lo" in done.stdout.split()


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_there_is_a_script_for_other_shells(shell: str, run: Run) -> None:
    pytest.importorskip("shtab")
    status, out, _ = run("--print-completion", shell)
    assert status == 0
    assert all(command in out for command in ("status", "explain", "watch"))


def test_without_shtab_the_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    status, out, err = run("--print-completion", "bash")
    assert (status, out) == (3, "")
    assert err.startswith("bindsock: ")
    assert 'pip install "bindsock[completion]"' in err
