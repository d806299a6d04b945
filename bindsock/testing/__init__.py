"""Helpers for tests of bindsock and of programs that use it: simulated networks and, on Linux, real ones in network namespaces
(:mod:`bindsock.testing.lab`)."""

from bindsock.testing.check_kernel import check_kernel
from bindsock.testing.multipath import SimulatedPathManager
from bindsock.testing.networks import interface, network
from bindsock.testing.simulated import SimulatedEvents, SimulatedKernel

__all__ = ["SimulatedEvents", "SimulatedKernel", "SimulatedPathManager", "check_kernel", "interface", "network"]
