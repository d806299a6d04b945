from __future__ import annotations

import errno
import io
import os
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest

from bindsock import kernel as kernels
from bindsock.cli import output
from bindsock.errors import KernelError, UnsupportedSystem
from bindsock.kernel import Kernel
from bindsock.model.network import Network
from bindsock.testing.simulated import SimulatedKernel

from .conftest import Run

COMMANDS = ("status", "explain", "watch", "doctor", "repair", "run", "proxy", "demo")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_exit_statuses(command: str, run: Run) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert "examples:" in out
    assert "exit status:" in out


def test_help_names_every_command(run: Run) -> None:
    _, out, _ = run("--help")
    assert all(f"    {command} " in out for command in COMMANDS)


def test_a_command_does_not_wait_for_the_import_of_the_others() -> None:
    others = ["bindsock.cli.demo", "bindsock.cli.doctor", "bindsock.testing", "email", "http", "bindsock.proxy"]
    code = "import sys; from bindsock.cli import main; main(['status']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    imported = done.stderr.split()
    assert "bindsock.cli.status" in imported
    assert not set(others) & set(imported)


def test_the_version_is_that_of_the_distribution(run: Run) -> None:
    assert run("--version") == (0, f"bindsock {version('bindsock')}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [(), ("fly",), ("status", "--family", "5"), ("status", "-4", "-6"), ("watch", "--count", "0"), ("status", "--cost", "much")],
)
def test_what_is_not_understood_is_exit_status_2(arguments: tuple[str, ...], run: Run) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: bindsock")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_misspelled_option_is_refused_with_the_nearest_one(command: str, run: Run) -> None:
    wrong, right = ("--sgv", "--svg") if command == "demo" else ("--interfase", "--interface")
    for arguments in ((wrong, "x"), (f"{wrong}=x",)):
        status, out, err = run(command, *arguments)
        assert (status, out) == (2, "")
        assert err.startswith(f"usage: bindsock {command}")
        assert err.endswith(f"; did you mean {right}?\n")
    assert run(command, "--qqqqqq")[2].endswith(f"bindsock {command}: error: unrecognized arguments: --qqqqqq\n")


@pytest.mark.parametrize(
    ("arguments", "right"), [(("explian", "example.com"), "explain"), (("explain", "--cost", "cheap"), "cheapest")]
)
def test_a_misspelled_command_or_choice_is_refused_with_the_nearest_one(arguments: tuple[str, ...], right: str, run: Run) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert f"; did you mean {right}?\n" in err or f", maybe you meant '{right}'? " in err


@pytest.mark.parametrize("command", ["status", "explain", "watch"])
def test_an_unsupported_system_is_exit_status_3_with_one_clear_line(
    command: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def current() -> Kernel:
        raise UnsupportedSystem("bindsock runs on Linux, macOS and iOS, not on plan9")

    monkeypatch.setattr(kernels, "current", current)
    assert run(command) == (3, "", "bindsock: bindsock runs on Linux, macOS and iOS, not on plan9\n")


@pytest.mark.parametrize("error", [KernelError("the answer is truncated"), OSError(errno.EMFILE, "Too many open files")])
def test_a_system_that_refuses_is_exit_status_3(
    error: OSError, kernel: SimulatedKernel, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def network() -> Network:
        raise error

    monkeypatch.setattr(kernel, "network", network)
    status, out, err = run("status")
    assert (status, out) == (3, "")
    assert err.startswith("bindsock: ")
    assert err.count("\n") == 1


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        finished = subprocess.run(
            [sys.executable, "-m", "bindsock", "status"], stdout=out, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert (finished.returncode, finished.stderr) == (141, "")


@pytest.mark.lab
@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize("stream", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["status", "status --json", "explain", "watch --count 0", "doctor --no-probe", "run -- true"])
def test_a_standard_stream_that_is_closed_is_no_traceback(command: str, stream: str) -> None:
    script = f"exec {shlex.quote(sys.executable)} -m bindsock {command} {stream}"
    finished = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == (2 if "watch" in command else 0)
    assert "Traceback" not in finished.stderr
    if "2>&-" in stream:
        assert "bindsock:" not in finished.stdout + finished.stderr


def test_a_terminal_gets_colour() -> None:
    terminal = Terminal()
    output.Printer(terminal).line("effective interface: en0", "bold green")
    assert "\x1b[" in terminal.getvalue()


def test_without_rich_a_terminal_gets_the_same_text_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    terminal = Terminal()
    output.Printer(terminal).line("effective interface: en0", "bold green")
    assert terminal.getvalue() == "effective interface: en0\n"


def test_a_file_gets_no_colour() -> None:
    file = io.StringIO()
    output.Printer(file).line("effective interface: en0", "bold green")
    assert file.getvalue() == "effective interface: en0\n"


def test_long_lines_are_left_to_the_terminal() -> None:
    terminal = Terminal()
    output.Printer(terminal).line("x" * 300)
    assert "x" * 300 in terminal.getvalue()


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("a", "1", "x"), ("bbb", "20", "")]
    assert output.columns(rows, right=(1,)) == ["a     1  x", "bbb  20"]
    assert output.columns([]) == []
