"""Replaces addresses and names, each always by the same value, so that a report can be published and still be understood."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any

_DOCUMENTATION = ("192.0.2.", "198.51.100.", "203.0.113.")
"""The networks for documentation (RFC 5737)."""
_CANDIDATE = re.compile(
    r"(?<![\w.:-])(?:(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9A-Fa-f]{1,4}:|:)(?:[0-9A-Fa-f]{0,4}:)*(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{0,4}))"
    r"(?![\w:]|\.\d)"
)
_NOT_PRIVATE = ("0.0.0.0/32", "127.0.0.0/8", "255.255.255.255/32", "::/127", "192.0.0.0/29")
_KEPT = tuple(map(ipaddress.ip_network, _NOT_PRIVATE))
_HALVES = {"128.0.0.0", "2000::", "3000::", "4000::", "8000::", "c000::", "fc00::", "fe80::"}
"""Prefixes that replace the default route, or that every host has; they are not redacted."""


class Redaction:
    """Replaces addresses and names. The originals cannot be derived from the result.

    :param names: host names to replace
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = {name: f"host{number or ''}.example" for number, name in enumerate(dict.fromkeys(names)) if name}
        self._known: dict[str, str] = {}
        self._counts = {4: 0, 6: 0, 0: 0}

    def document(self, value: Any) -> Any:
        """A JSON document with all its texts redacted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.document(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.document(each) for each in value]
        return value

    def text(self, value: str) -> str:
        """A redacted text."""
        for name, instead in self._names.items():
            value = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", instead, value, flags=re.IGNORECASE)
        return _CANDIDATE.sub(self._address, value)

    def _address(self, match: re.Match[str]) -> str:
        found = match[0]
        try:
            address = ipaddress.ip_address(found)
        except ValueError:
            return found
        if found in _HALVES or any(address in network for network in _KEPT):
            return found
        key = address.compressed
        if key not in self._known:
            self._known[key] = self._next(address)
        return self._known[key]

    def _next(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
        kind = 4 if address.version == 4 else 0 if address.is_link_local else 6
        number = self._counts[kind] = self._counts[kind] + 1
        if kind == 4:
            block, last = divmod(number - 1, 254)
            # After those 762 addresses, the network for benchmarks is used (RFC 2544).
            return f"{_DOCUMENTATION[block] if block < len(_DOCUMENTATION) else f'198.18.{block}.'}{last + 1}"
        return f"{'2001:db8' if kind == 6 else 'fe80'}::{number:x}"
