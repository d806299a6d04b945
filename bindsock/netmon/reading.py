"""Reads the network for a watcher, and notices when the machine has slept."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.kernel import Kernel
    from bindsock.model.network import Network

_logger = logging.getLogger("bindsock")

_SLEPT = 1.0
"""Seconds by which the two clocks must have drifted apart to call it a sleep."""


class NetworkReader:
    """Asks a kernel for readings of the network."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._suspended = 0.0
        self._complained = False

    def start(self) -> Network:
        """The first reading. From now on :meth:`woke` tells of a sleep.

        :raises OSError: the kernel does not answer
        """
        self._suspended = self._kernel.suspended()
        return self._kernel.network()

    def read(self, *, partial: bool = False) -> Network | None:
        """One reading, ``None`` if the kernel does not answer; that is logged, the first time.

        :param partial: see :meth:`bindsock.kernel.Kernel.network`
        """
        try:
            network = self._kernel.network(partial=True) if partial else self._kernel.network()
        except OSError as error:
            if not self._complained:
                _logger.warning("the network could not be read, the last reading stands: %s", error)
                self._complained = True
            return None
        self._complained = False
        return network

    def woke(self) -> bool:
        """Whether the machine has slept since this was last asked."""
        suspended = self._kernel.suspended()
        woke = suspended - self._suspended > _SLEPT
        self._suspended = suspended
        return woke
