"""A simulation of Darwin's kernel, as far as bindsock uses it, for tests on any system."""

from bindsock.testing.darwin._kernel import SimulatedDarwin
from bindsock.testing.darwin._packet import Packet
from bindsock.testing.darwin._sockets import SimulatedSocket
from bindsock.testing.darwin._state import HARDWARE, Hardware, SimulatedInterface, SimulatedRoute

__all__ = ["HARDWARE", "Hardware", "Packet", "SimulatedDarwin", "SimulatedInterface", "SimulatedRoute", "SimulatedSocket"]
