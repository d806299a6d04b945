"""A watcher on a scripted network whose time passes only when the test says so."""

from __future__ import annotations

from bindsock.model.network import Network
from bindsock.netmon.watcher import Watcher
from bindsock.routing.effective import Preferences
from bindsock.testing import SimulatedKernel
from tests.stepped_loop import SteppedLoop
from tests.virtual_loop import VirtualLoop


class Scene:
    """What the tests of followers have in common.

    :param initial: the network at the start
    :param clock: the loop that the watcher runs on; with a :class:`SteppedLoop` real sockets and transports can be used
    """

    def __init__(self, initial: Network, clock: SteppedLoop | VirtualLoop) -> None:
        self.clock = clock
        self.kernel = SimulatedKernel(initial)
        self.watcher = Watcher(self.kernel, Preferences(), runtime=clock.runtime)

    def change(self, network: Network) -> None:
        """The network changes, and is read before the next line of the test."""
        self.kernel.change(network)
        self.watcher.refresh()

    def wait(self, seconds: float) -> None:
        """Let time pass, with the timers that are due."""
        self.clock.advance(seconds)
