"""Look-ups in a network, for tests of the kernel backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.model.network import Interface, Network


def named(network: Network, name: str) -> Interface:
    """The interface of that name. It must exist."""
    found = network.named(name)
    assert found is not None
    return found
