"""Every code block of the README and of the documentation works, and prints what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bindsock
from bindsock.testing.lab import available
from tests.docs import commands
from tests.docs.page import ROOT, Block, blocks, inline_commands, normalized, pages

PATIENCE = 280.0
BLOCKS = [block for page in pages() for block in blocks(page)]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.lab
@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.skipped is None}), ids=name)
def test_the_blocks_of_a_page_run_from_top_to_bottom(page: Path) -> None:
    obstacle = available(vpn=True)
    if obstacle is not None:
        pytest.skip(obstacle)
    command = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-m", "tests.docs", str(page)]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.skipped is not None], ids=str)
def test_a_block_that_is_not_run(block: Block) -> None:
    pytest.skip(f"{block}: {block.skipped}")


def test_every_block_has_a_language_that_is_run_or_says_why_it_is_not() -> None:
    run = {"python", "console", "text", "ini", "toml"}
    assert [str(block) for block in BLOCKS if block.skipped is None and block.language not in run] == []


def test_every_python_block_is_run() -> None:
    assert [str(block) for block in BLOCKS if block.language == "python" and block.skipped is not None] == []


def test_a_line_of_code_is_as_wide_as_the_page_at_the_most() -> None:
    lines = [(str(block), line) for block in BLOCKS if block.language == "python" for line in block.source.splitlines()]
    assert [(block, line) for block, line in lines if len(line) > 90] == []


def test_the_commands_of_blocks_that_are_not_run_are_understood() -> None:
    for block in BLOCKS:
        if block.language == "console" and block.skipped is not None:
            for command, _ in commands.split(block.source):
                if commands.words(command)[0] == "bindsock":
                    commands.check(command)


@pytest.mark.parametrize("command", sorted({command for _, command in inline_commands()}))
def test_a_command_in_the_text_is_understood(command: str) -> None:
    if "--print-completion" in command:
        pytest.importorskip("shtab")
    commands.check(command)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_a_link_to_a_file_leads_to_one(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", (ROOT / page).read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_and_the_start_page_show_the_same_program() -> None:
    program = [block for block in BLOCKS if block.source.startswith(("# hello.py", "$ python hello.py"))]
    of_the_readme, on_the_start_page = ([b.source for b in program if b.page.name == name] for name in ("README.md", "start.md"))
    assert len(of_the_readme) == 2
    assert of_the_readme == on_the_start_page


def test_the_map_names_every_module_of_the_core() -> None:
    text = (ROOT / "docs" / "design.md").read_text("utf-8").partition("```text")[2].partition("```")[0]
    package = Path(bindsock.__file__).parent
    core = ("model", "routing", "kernel", "netmon", "dial", "datagram", "stream", "reconnect", "repair")
    modules = [path for name in core for path in (package / name).rglob("*.py")] + list(package.glob("*.py"))
    names = {path.stem for path in modules if path.stem not in ("__init__", "__main__")}
    names |= {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    assert sorted(names - set(re.findall(r"\w+", text))) == []


def test_what_differs_from_machine_to_machine_is_not_compared() -> None:
    here = normalized("10.0.0.1 leaves by wlan0 via fe80::1 after 12 ms at 12:00:01.5, Linux 6.1, :: and 2001:db8::7 port 80")
    there = normalized("10.9.8.7 leaves by wlan0 via fd10:1::1 after 3.5 ms at 01:02:03, Linux 7.0-x, fd00:: and ::1 port 9")
    assert here == there
    assert normalized("leaves by wlan0") != normalized("leaves by eth0")
