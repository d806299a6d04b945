"""A watcher on a scripted network, with a clock that only the test advances."""

from __future__ import annotations

from bindsock.model.network import Network
from bindsock.netmon.watcher import Watcher
from bindsock.routing.effective import Preferences
from bindsock.testing import SimulatedKernel
from tests.stepped_loop import SteppedLoop
from tests.virtual_loop import VirtualLoop


class Scene:
    """The scripted network, the watcher and the clock that the tests of followers share.

    :param initial: the network at the start
    :param clock: the loop that the watcher runs on; with a :class:`SteppedLoop` real sockets and transports can be used
    :param interface: the only interface that the watcher may choose
    """

    def __init__(self, initial: Network, clock: SteppedLoop | VirtualLoop, interface: str | None = None) -> None:
        self.clock = clock
        self.kernel = SimulatedKernel(initial)
        self.watcher = Watcher(self.kernel, Preferences(), runtime=clock.runtime, interface=interface)

    def change(self, network: Network) -> None:
        """Change the network, and let the watcher read it before this returns."""
        self.kernel.change(network)
        self.watcher.refresh()

    def wait(self, seconds: float) -> None:
        """Advance the clock, and run the timers that are due."""
        self.clock.advance(seconds)
