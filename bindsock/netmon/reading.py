"""Reads the network for a watcher, and notices when the host was suspended."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.kernel import Kernel
    from bindsock.model.network import Network

_logger = logging.getLogger("bindsock")

_SLEPT = 1.0
"""Seconds by which the two clocks must differ more than before to count as a suspend."""


class NetworkReader:
    """Reads the network by a kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._suspended = 0.0
        self._complained = False

    def start(self) -> Network:
        """Make the first reading. From now on :meth:`woke` notices a suspend.

        :raises OSError: the kernel does not answer
        """
        self._suspended = self._kernel.suspended()
        return self._kernel.network()

    def read(self, *, partial: bool = False) -> Network | None:
        """Read the network; ``None`` if the kernel does not answer. The first failure in a row is logged.

        :param partial: see :meth:`bindsock.kernel.Kernel.network`
        """
        try:
            network = self._kernel.network(partial=True) if partial else self._kernel.network()
        except OSError as error:
            if not self._complained:
                _logger.warning("cannot read the network, the last reading stays in use: %s", error)
                self._complained = True
            return None
        self._complained = False
        return network

    def woke(self) -> bool:
        """Whether the host was suspended since the last call."""
        suspended = self._kernel.suspended()
        woke = suspended - self._suspended > _SLEPT
        self._suspended = suspended
        return woke
