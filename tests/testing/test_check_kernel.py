"""The conformance suite of kernel backends: the three backends pass, and a faulty backend fails."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bindsock import BindFailed
from bindsock import kernel as kernels
from bindsock.model.network import Interface, IPAddress, Network
from bindsock.testing import SimulatedEvents, SimulatedKernel, check_kernel, interface, network
from bindsock.testing.lab import Lab
from tests.darwin.machines import two_uplinks

NETWORK = network(
    "1: lo loopback 127.0.0.1/8 ::1/128",
    "2: wifi0 wifi 192.0.2.5/24 2001:db8::5/64",
    "3: eth0 wifi 198.51.100.5/24",
    "default via 192.0.2.1 dev wifi0",
    "default via fe80::1 dev wifi0",
    "default via 198.51.100.1 dev eth0",
)


@pytest.mark.lab
def test_linux_keeps_the_promises(lab: Lab) -> None:
    check_kernel(kernels.current())


@pytest.mark.lab
def test_linux_keeps_the_promises_beneath_a_vpn(lab: Lab) -> None:
    lab.vpn_up("metric")
    check_kernel(kernels.current())


def test_darwin_over_a_simulated_machine_keeps_the_promises() -> None:
    check_kernel(two_uplinks().kernel())


def test_the_simulated_kernel_keeps_the_promises() -> None:
    check_kernel(SimulatedKernel(NETWORK))


def test_a_kernel_without_any_uplink_can_be_checked() -> None:
    check_kernel(SimulatedKernel(network()))


class DifferentEachTime(SimulatedKernel):
    def network(self, *, partial: bool = False) -> Network:
        self.readings += 1
        return dataclasses.replace(NETWORK, interfaces={9: interface(f"9: new{self.readings} wifi")})


class WrongIndex(SimulatedKernel):
    def network(self, *, partial: bool = False) -> Network:
        return dataclasses.replace(NETWORK, interfaces={7: interface("2: wifi0 wifi")}, **self.nothing)

    nothing: dict[str, Any] = {}  # noqa: RUF012 - a subclass of a test


class EmptyWhenPartial(SimulatedKernel):
    def network(self, *, partial: bool = False) -> Network:
        return network() if partial else NETWORK


class BindsNothing(SimulatedKernel):
    def bind(self, sock: socket.socket, interface: Interface) -> None:
        pass


class BindsToAnything(SimulatedKernel):
    def bind(self, sock: socket.socket, interface: Interface) -> None:
        self._bound[sock] = interface.index


class TellsNoCall(SimulatedKernel):
    def bind(self, sock: socket.socket, interface: Interface) -> None:
        try:
            super().bind(sock, interface)
        except BindFailed as error:
            raise BindFailed(error.message, interface=interface.name) from error


class StaysBound(SimulatedKernel):
    def unbind(self, sock: socket.socket, **_: object) -> None:
        pass


class AlwaysDirty(SimulatedEvents):
    def drain(self) -> bool:
        return True


class NeverQuiet(SimulatedKernel):
    def events(self) -> Sequence[SimulatedEvents]:
        return [AlwaysDirty()]


class ContradictsItself(SimulatedKernel):
    def has_route(self, interface: Interface, destination: IPAddress) -> bool:
        return False


class SaysNothing(SimulatedKernel):
    def route_hint(self, interface: Interface, destination: IPAddress) -> str:
        return ""


class Sleepy(SimulatedKernel):
    def suspended(self) -> float:
        self.sleep(1.0)
        return super().suspended()


class ForgetsAtClose(SimulatedKernel):
    def close(self) -> None:
        self._network = network()


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (DifferentEachTime, "two readings of an unchanged network are equal"),
        (WrongIndex, "wifi0 is listed under its own index"),
        (EmptyWhenPartial, "a partial reading has the interfaces of a complete one"),
        (BindsNothing, "binds a AF_INET SOCK_STREAM socket to wifi0"),
        (BindsToAnything, "raises BindFailed"),
        (TellsNoCall, "BindFailed names the call"),
        (StaysBound, "unbinds a socket from wifi0"),
        (NeverQuiet, "drain\\(\\) is false when nothing has happened"),
        (ContradictsItself, "has_route\\(\\) is true if lookups\\(\\) finds a route by wifi0"),
        (SaysNothing, "route_hint\\(\\) returns a sentence"),
        (Sleepy, "suspended\\(\\) grows only while the machine sleeps"),
        (ForgetsAtClose, "the kernel can be used again after close\\(\\)"),
    ],
)
def test_a_kernel_that_breaks_a_promise_fails(broken: Callable[[Network], SimulatedKernel], promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_kernel(broken(NETWORK))
