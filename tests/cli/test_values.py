"""Arguments that have no meaning: exit status 2, and a sentence that says what is wrong with the value."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from bindsock.cli.values import why_no_host

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Run

LABEL = "a" * 80 + ".de"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[
            (("status", f"--mark={text}"), f"argument --mark: {text!r} is not a 32-bit number, such as 51820 or 0xca6c")
            for text in ("99999999999", "-1", "x", "")
        ],
        *[
            ((command, "--interface", ""), "argument --interface: the name of an interface must not be empty")
            for command in ("status", "explain", "watch", "doctor", "repair", "run", "proxy")
        ],
        *[
            (("proxy", "--listen", text), f"argument --listen: {text!r} is not HOST:PORT, with a port of 0 to 65535")
            for text in ("127.0.0.1:99999", "127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1", ":1080", "")
        ],
        (
            ("proxy", "--listen", "::1:1080"),
            "argument --listen: '::1:1080' is ambiguous: write an IPv6 address in brackets, such as [::1]:1080",
        ),
        (("proxy", "--listen", "localhost:1080"), "argument --listen: 'localhost' is not an IP address"),
        (
            ("proxy", "--resolver", "interface", "--dns-server", "nonsense"),
            "argument --dns-server: 'nonsense' is not an IP address",
        ),
        *[
            ((command, f"{option}={text}"), f"argument {option}: {text!r} is not a number of seconds above 0, at most 86400")
            for command, option in (("doctor", "--timeout"), ("proxy", "--connect-timeout"))
            for text in ("0", "-1", "nan", "inf", "soon")
        ],
        *[
            ((command, f"{option}={text}"), f"argument {option}: {text!r} is not a whole number above 0")
            for command, option in (("watch", "--count"), ("proxy", "--max-connections"), ("proxy", "--head-limit"))
            for text in ("0", "-1", "1.5", "many", "9" * 5000)
        ],
        *[
            ((command, "10.9.0.10", f"--port={text}"), f"argument --port: {text!r} is not a port: 1 to 65535")
            for command in ("doctor", "demo")
            for text in ("70000", "0", "-1", "https")
        ],
        *[
            ((command, text), f"argument HOST: {text!r} is not a host name{hint}")
            for command in ("doctor", "demo")
            for text, hint in (
                ("", ""),
                (LABEL, ""),
                ("http://10.9.0.10/", "; did you mean 10.9.0.10?"),
                ("example.com:443", "; did you mean example.com?"),
            )
        ],
    ],
)
def test_a_wrong_value_is_exit_status_2_and_says_why(arguments: tuple[str, ...], message: str, run: Run) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.endswith(f"bindsock {arguments[0]}: error: {message}\n")


def test_a_missing_library_for_name_servers_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns", None)
    status, out, err = run("proxy", "--resolver", "interface", "--dns-server", "192.0.2.53")
    assert (status, out) == (3, "")
    assert err.startswith("bindsock: ")
    assert err.endswith('pip install "bindsock[dns]"\n')


def test_a_file_of_credentials_that_is_not_text_is_named(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_bytes(b"me:\xff\n")
    status, out, err = run("proxy", "--credentials", str(file))
    assert (status, out) == (2, "")
    assert err.endswith(f"error: {file}: not UTF-8\n")


@pytest.mark.parametrize(
    "text", ["example.com", "example.com.", "10.9.0.10", "::1", "fe80::1%eth0", "_srv.example.com", "münchen.de", "localhost"]
)
def test_a_host_is_a_name_or_an_address(text: str) -> None:
    assert why_no_host(text) is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", None),
        (".", None),
        ("a..b", None),
        (LABEL, None),
        ("a." * 130 + "de", None),
        ("two words", None),
        ("https://example.com/path?query", "example.com"),
        ("me@example.com", "example.com"),
        ("example.com/path", "example.com"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("http://[", None),
    ],
)
def test_what_is_no_host_is_told_with_what_may_be_meant(text: str, meant: str | None) -> None:
    assert why_no_host(text) == f"{text!r} is not a host name" + (f"; did you mean {meant}?" if meant else "")
