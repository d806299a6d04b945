"""A packet of the simulated machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.model.network import IPAddress


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that left the machine."""

    interface: str
    protocol: str
    source: IPAddress
    destination: IPAddress
    source_port: int
    destination_port: int
    flags: str = ""
    payload: bytes = b""
