"""The examples that ``--help`` shows are understood, and those that filter JSON find what they look for."""

from __future__ import annotations

import contextlib
import io
import itertools
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bindsock.cli import main
from bindsock.testing.lab import Lab
from tests.docs import commands

COMMANDS = ("", "status", "explain", "watch", "doctor", "repair", "run", "proxy", "demo")


def examples(text: str) -> Iterator[str]:
    """The commands under ``examples:``, without what the overview says about each."""
    lines = iter(text.splitlines())
    for line in lines:
        if line == "examples:":
            break
    for line in lines:
        if not line:
            return
        yield line.strip().split("   ")[0]


def help_of(command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    return out.getvalue()


EXAMPLES = {command: list(examples(help_of(command))) for command in COMMANDS}
ALL = list(dict.fromkeys(itertools.chain(*EXAMPLES.values())))
FILTERS = [e for e in ALL if " | jq " in e and "watch" not in e and "demo" not in e]  # these two take long, or do not end


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_an_example_of_its_own(command: str) -> None:
    assert any(example.removeprefix("sudo ").startswith(f"bindsock {command}".rstrip()) for example in EXAMPLES[command])


@pytest.mark.parametrize("example", [e for e in ALL if e.startswith(("bindsock ", "sudo bindsock "))])
def test_an_example_is_understood(example: str) -> None:
    commands.check(example)


@pytest.mark.lab
@pytest.mark.parametrize("example", FILTERS)
def test_an_example_with_a_filter_finds_what_it_looks_for(lab: Lab, vpn: None, example: str) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    lab.vpn_up("policy-kill" if "doctor" in example or "repair" in example else "metric")
    program = f"{shlex.quote(sys.executable)} -m bindsock"
    command = example.replace("bindsock", program, 1).replace("example.com", lab.server.ipv4)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert "null" not in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_narrow_terminal_gets_every_line_wrapped_but_the_examples(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    narrow = help_of(command)
    assert list(examples(narrow)) == EXAMPLES[command]
    _, _, rest = narrow.partition("\nexamples:\n")
    _, _, rest = rest.partition("\n\n")
    assert [line for line in rest.splitlines() if len(line) > 40 and "bindsock[" not in line] == []
    monkeypatch.setenv("COLUMNS", "200")
    assert narrow.split("exit status:")[1].split() == help_of(command).split("exit status:")[1].split()


def test_the_continuation_of_an_exit_status_is_indented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert "  1    failure: no interface may be\n       used, a name has no address, a\n" in help_of("")
