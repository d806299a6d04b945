"""The commands in console blocks: some are run, the others are checked."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

from bindsock.cli.application import parser
from tests.chaos.__main__ import parse as parse_chaos

ROOT = Path(__file__).parents[2]
_WITHOUT_AN_END = ("watch", "demo", "proxy")
_RUN = ("bindsock", "python", "curl", "ip", "iptables", "ss", "sysctl")


class Unknown(AssertionError):
    """There is no check for this command."""


def split(source: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output shown below it."""
    commands: list[tuple[str, str]] = []
    continued = False
    for line in source.splitlines():
        command, output = commands[-1] if commands else ("", "")
        if continued:
            commands[-1] = (f"{command}\n{line}", output)
        elif line.startswith(("$ ", "# ")):
            commands.append((line[2:], ""))
        elif commands:
            commands[-1] = (command, f"{output}{line}\n")
        elif line.strip():
            raise Unknown(f"output before the first command: {line}")
        continued = line.endswith("\\")
    return commands


def words(command: str) -> list[str]:
    """The words of a command without ``sudo``, the environment's directory, comments, pipes and redirections."""
    found = shlex.split(command.removeprefix("sudo ").removeprefix(".venv/bin/"), comments=True)
    return list(itertools.takewhile(lambda word: word not in (">", "|", "&", "&&", "<"), found))


def is_run(command: str) -> bool:
    """Whether the command can be run here: it ends, and changes nothing outside the laboratory."""
    program, *arguments = words(command)
    if program == "bindsock":
        return command.rstrip().endswith("&") or not set(arguments[:1]) & set(_WITHOUT_AN_END)
    return program in _RUN and not (arguments[:2] == ["-m", "tests.chaos"] or _names_a_test_of_the_project(arguments))


def _names_a_test_of_the_project(arguments: Sequence[str]) -> bool:
    return arguments[:2] == ["-m", "pytest"] and any(argument.startswith("tests/") for argument in arguments)


def check(command: str) -> None:
    """Check the words of a command as the program would.

    :raises AssertionError: the program would reject them
    """
    match words(command):
        case ["bindsock", *arguments]:
            check_bindsock(arguments)
        case ["python3", "-m", "venv", _]:
            pass
        case ["pip", "install", *requirements]:
            assert "[" not in re.sub(r'"[^"]*"', "", command), f"quote the requirement, for zsh: {command}"
            for requirement in requirements:
                check_requirement(requirement)
        case ["make", *_] as make:
            done = subprocess.run([*make, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        case ["python", "-m", "tests.chaos", *arguments]:
            parse_chaos(arguments)
        case ["python", "-m", "pytest", *arguments]:
            for argument in arguments:
                if argument.startswith("tests/"):
                    assert (ROOT / argument).exists(), argument
        case _:
            if not is_run(command):
                raise Unknown(f"nobody knows how to check {command!r}: run it, or say in the page why not (skip: next)")


def check_bindsock(arguments: Sequence[str]) -> None:
    """Check the arguments with the command's own parser."""
    try:
        parser().parse_args(arguments)
    except SystemExit as end:
        if end.code:
            raise AssertionError(f"bindsock does not understand {shlex.join(arguments)}") from end


def check_requirement(requirement: str) -> None:
    """Check that the package and its extras exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = re.fullmatch(r"(?:bindsock|\.)(?:\[(.+)\])?", requirement)
    if found is None:
        known = project["optional-dependencies"]["test"]
        assert any(line.split()[0] == requirement for line in known), f"{requirement} is not known"
        return
    for extra in (found[1] or "").split(","):
        assert not extra or extra in project["optional-dependencies"], f"there is no extra {extra}"
