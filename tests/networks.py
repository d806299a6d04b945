"""What is in a network, for tests of what the kernel says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.model.network import Interface, Network


def named(network: Network, name: str) -> Interface:
    """The interface of that name. There must be one."""
    found = network.named(name)
    assert found is not None
    return found
