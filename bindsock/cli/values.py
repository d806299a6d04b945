"""The types of arguments: each converts a text, or says what is wrong with it."""

from __future__ import annotations

import argparse
import math
from urllib.parse import urlsplit

from bindsock.model.network import is_address

_LONGEST = 86400.0
"""The longest timeout, in seconds."""
_LONGEST_NAME = 253
"""The longest host name (RFC 1035 section 2.3.4, without the length of the first label and the root)."""


def whole_number(text: str) -> int:
    """A number above 0."""
    number = _number(text)
    if number is None or number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def port(text: str) -> int:
    """A port to connect to."""
    number = _number(text)
    if number is None or not 0 < number < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 1 to 65535")
    return number


def seconds(text: str) -> float:
    """A timeout."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, at most {_LONGEST:.0f}")
    return number


def mark(text: str) -> int:
    """A firewall mark, decimal or with 0x; 0 for none."""
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number <= 0xFFFFFFFF:
        raise argparse.ArgumentTypeError(f"{text!r} is not a 32-bit number, such as 51820 or 0xca6c")
    return number


def interface_name(text: str) -> str:
    """The name of an interface, which need not exist."""
    if not text:
        raise argparse.ArgumentTypeError("the name of an interface must not be empty")
    return text


def address(text: str) -> str:
    """An IP address."""
    if not is_address(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an IP address")
    return text


def listening_address(text: str) -> tuple[str, int]:
    """HOST:PORT, with an IPv6 address in brackets."""
    host, _, digits = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    number = _number(digits)
    if not host or number is None or number > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, with a port of 0 to 65535")
    if ":" in host and not bracketed:
        raise argparse.ArgumentTypeError(f"{text!r} is ambiguous: write an IPv6 address in brackets, such as [::1]:1080")
    return address(host[1:-1] if bracketed else host), number


def host(text: str) -> str:
    """A host name or an address."""
    reason = why_no_host(text)
    if reason is not None:
        raise argparse.ArgumentTypeError(reason)
    return text


def why_no_host(text: str) -> str | None:
    """Why the text is neither a host name nor an address; ``None`` if it is one."""
    if _is_host(text):
        return None
    try:
        meant = urlsplit(text if "//" in text else f"//{text}").hostname
    except ValueError:
        meant = None
    hint = f"; did you mean {meant}?" if meant and meant != text and _is_host(meant) else ""
    return f"{text!r} is not a host name{hint}"


def _is_host(text: str) -> bool:
    if is_address(text):
        return True
    if not text.isprintable() or any(character in " :/@\\?#[]" for character in text):
        return False
    try:
        return 0 < len(text.encode("idna").removesuffix(b".")) <= _LONGEST_NAME
    except UnicodeError:  # an empty label, or one that is too long
        return False


def _number(text: str) -> int | None:
    """A number of digits only; ``None`` if it is something else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
