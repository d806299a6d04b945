"""Runs a page of the documentation as a program: its blocks, from top to bottom.

Sybil finds the blocks, and the reasons for skipping some::

    <!--- skip: next "needs a Mac" -->

and blocks that a reader does not see, which prepare the next block or check the previous one::

    <!--- invisible-code-block: python
    assert ...
    -->

A block whose first line is ``# name.py`` or ``# name.ini`` is a file; a console block runs the program. All other Python blocks
share their names. A ``text`` block is what the block above printed, but for addresses, times and versions; ``...`` stands for
anything.
"""

from __future__ import annotations

import ast
import asyncio
import configparser
import contextlib
import doctest
import inspect
import io
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tomllib
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from tests.docs import commands

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
_DIRECTIVE = re.compile(r"\{[\w-]+\}.*")
_FILE = re.compile(r"# (\w+\.(?:py|ini))\n")
_ALIKE = (
    (re.compile(r"\b\d\d:\d\d:\d\d(?:[.,]\d+)?"), "CLOCK"),
    (re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?:%\w+)?(?![\w:])"), "ADDRESS"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b"), "ADDRESS"),
    (re.compile(r"\b\d+(?:\.\d+)? ?(?:ms|s|µs)\b"), "TIME"),
    (re.compile(r"\b(Linux|Python) \d[\w.+-]*"), r"\1 VERSION"),
    (re.compile(r"\b(ADDRESS port |ADDRESS:)\d+\b"), r"\1PORT"),
    (re.compile(r"\b(table|lookup) \d{9,}\b"), r"\1 TABLE"),
    # Devices that some kernel modules create in every network namespace.
    (re.compile(r"(?m)^ *- +(?:tunl0|sit0|ip6tnl0|gre0|gretap0|erspan0|ip_vti0|ip6_vti0|ip6gre0) .*\n"), ""),
)


def pages() -> list[Path]:
    """All pages that a user reads."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block as a reader sees it."""

    page: Path
    line: int
    language: str
    source: str
    skipped: str | None
    """The reason why the block is skipped."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, without Sphinx's directives."""
    document = Document(page.read_text(), str(page))
    for region in RawFencedCodeBlockLexer(re.compile(r"(?P<info>[^\n]*)\n"))(document):
        if not _DIRECTIVE.fullmatch(region.lexemes["info"]):
            before = document.text[: region.start].rstrip().rsplit("\n", 1)[-1]
            reason = re.fullmatch(r'<!--- skip: next "(.*)" -->', before)
            line = document.text.count("\n", 0, region.start) + 1
            yield Block(page, line, region.lexemes["info"], str(region.lexemes["source"]), reason[1] if reason else None)


def inline_commands() -> Iterator[tuple[Path, str]]:
    """The bindsock commands in the text of the pages and of the files that a user reads before a bug report."""
    others = [ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", ROOT / ".github/ISSUE_TEMPLATE/bug.yml"]
    for path in [*pages(), *(other for other in others if other.exists())]:
        for command in re.findall(r"`(bindsock [^`]+)`", path.read_text()):
            yield path, command


class Failed(AssertionError):
    """A block does not do what it should. The message has the block and its result."""


class Page:
    """A page that is being run.

    :param path: its file
    :param directory: the directory in which its programs run
    :param names: the names that its Python blocks have from the beginning
    """

    def __init__(self, path: Path, directory: Path, names: dict[str, Any]) -> None:
        languages = {
            "python": self._python,
            "console": self._console,
            "text": self._text,
            "ini": self._ini,
            "toml": self._toml,
        }
        parsers = [CodeBlockParser(language, evaluator) for language, evaluator in languages.items()]
        others = CodeBlockParser(r"dockerfile|yaml", self._unknown)
        self._document = Document.parse(str(path), *parsers, others, SkipParser())
        self._document.namespace.update({"__name__": "__main__", "directory": directory, **names})
        self._directory = directory
        self._printed = ""
        self._files: set[str] = set()
        self._background: list[subprocess.Popen[str]] = []
        self._environment = os.environ | {
            "PATH": f"{self._programs()}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            # A reader has not installed everything that the project's tests need.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_PLUGINS": "pytest_asyncio.plugin",
        }
        self.run_count = 0
        self.skipped: list[str] = []

    def run(self) -> None:
        """Run all blocks.

        :raises Failed: a block does not do what it should
        """
        with asyncio.Runner() as self._runner:
            try:
                for example in self._document.examples():
                    self._run(example)
            finally:
                for process in self._background:
                    process.terminate()
                    process.communicate(timeout=PATIENCE)
        if self._files:
            raise Failed(f"no console block runs {', '.join(sorted(self._files))}")

    def _run(self, example: Example) -> None:
        where = f"{Path(example.path).relative_to(ROOT)}:{example.line}"
        try:
            example.evaluate()
        except unittest.SkipTest as reason:
            self.skipped.append(f"{where}: {reason}")
        except Exception as error:
            raise Failed(f"{where}: {type(error).__name__}: {error}\n{self._printed}") from error
        else:
            self.run_count += 1

    def _programs(self) -> Path:
        """A directory with the programs that a reader has installed."""
        programs = self._directory / "programs"
        programs.mkdir()
        for name, command in (("python", ""), ("bindsock", "-m bindsock"), ("sudo", None)):
            script = programs / name
            start = '"$@"' if command is None else f'{shlex.quote(sys.executable)} {command} "$@"'
            script.write_text(f"#!/bin/sh\nexec {start}\n")
            script.chmod(0o755)
        return programs

    def _python(self, example: Example) -> None:
        source = str(example.parsed)
        if file := _FILE.match(source):
            compile(source, file[1], "exec")
            (self._directory / file[1]).write_text(source)
            self._files.add(file[1])
            return
        tree = ast.increment_lineno(ast.parse(source, example.path), example.line + example.parsed.line_offset)
        code = compile(tree, example.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                if code.co_flags & inspect.CO_COROUTINE:
                    self._runner.run(eval(code, example.namespace))
                else:
                    exec(code, example.namespace)
        finally:
            self._printed = printed.getvalue()

    def _console(self, example: Example) -> None:
        for command, expected in commands.split(str(example.parsed)):
            commands.check(command)
            if not commands.is_run(command):
                assert not expected, f"{command} shows an output, but is not run"
                continue
            program = commands.words(command)[0]
            if shutil.which(program, path=self._environment["PATH"]) is None:
                raise unittest.SkipTest(f"there is no {program} here")
            self._files -= set(commands.words(command))
            if command.rstrip().endswith("&"):
                self._start(command)
                continue
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=self._directory,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            self._printed = done.stdout
            assert done.returncode == 0 or (expected and done.returncode == 1), f"{command} ended with status {done.returncode}"
            if expected:
                self._compare(expected)

    def _start(self, command: str) -> None:
        """Start a program that keeps running, and wait for its first output."""
        program = f"exec {command.rstrip().removesuffix('&')}"
        process = subprocess.Popen(
            ["bash", "-c", program],
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._background.append(process)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], PATIENCE)[0], f"{command} says nothing"

    def _text(self, example: Example) -> None:
        self._compare(str(example.parsed))

    def _compare(self, expected: str) -> None:
        checker = doctest.OutputChecker()
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        want, got = normalized(expected), normalized(self._printed)
        if not checker.check_output(want, got, options):
            raise AssertionError(checker.output_difference(doctest.Example("", want), got, options | doctest.REPORT_NDIFF))

    def _ini(self, example: Example) -> None:
        """Write a settings file, or check the commands of a systemd unit."""
        source = str(example.parsed)
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(source)
        if file := _FILE.match(source):
            (self._directory / file[1]).write_text(source)
        for section in unit.values():
            for name, value in section.items():
                program, *arguments = shlex.split(value) or [""]
                if name.startswith("Exec") and Path(program).name == "bindsock":
                    commands.check_bindsock(arguments)

    def _toml(self, example: Example) -> None:
        tomllib.loads(str(example.parsed))

    def _unknown(self, example: Example) -> None:
        raise AssertionError("nobody knows how to check this language")


def normalized(text: str) -> str:
    """The text without the parts that differ between machines and runs."""
    for pattern, replacement in _ALIKE:
        text = pattern.sub(replacement, text)
    return text
