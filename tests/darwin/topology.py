"""Builds the recorded machines in the simulated kernel: from the recorder's list of actions, or from a dump."""

from __future__ import annotations

import re
from ctypes import sizeof
from ipaddress import IPv4Network, ip_interface, ip_network
from typing import TYPE_CHECKING, Any

from bindsock.kernel.darwin import abi
from bindsock.kernel.darwin.interfaces import parse_links
from bindsock.kernel.darwin.messages import address_of, messages, prefix_length_of, sockaddrs
from bindsock.testing.darwin import Hardware, SimulatedDarwin, SimulatedRoute
from tests.darwin.golden import State, dump

if TYPE_CHECKING:
    from collections.abc import Callable

_ADDRESSES = {"en0": "2001:db8:1:0:8866:5aff:fe01:1065/64", "en5": "2001:db8:5:0:8866:5aff:fe02:1565/64"}
"""The addresses that the interfaces made from the advertised prefixes."""

_LINK_LOCAL = {
    "en0": "fe80::8866:5aff:fe01:1065/64",
    "en5": "fe80::8866:5aff:fe02:1565/64",
    "en9": "fe80::8866:5aff:fe03:1965/64",
}
_TUNNELS_OWN = "fe80::4013:64b6:450f:c47c/64"

_KINDS = {"utun": "tunnel", "bridge": "bridge", "pdp_ip": "cellular"}


def perform(kernel: SimulatedDarwin, action: str) -> None:
    """Repeat an action of the recorder.

    :raises OSError: the recorder's program got the same error
    """
    for pattern, doing in _ACTIONS:
        match = re.fullmatch(pattern, action)
        if match is not None:
            doing(kernel, *match.groups())
            return
    raise AssertionError(f"nobody knows how to do {action!r}")


def _create(kernel: SimulatedDarwin, name: str, index: str) -> None:
    known = kernel.recycled.get(name)
    hardware = "wifi" if name == "en0" else _KINDS.get(name.rstrip("0123456789"), "wired")
    kernel.add_interface(name, hardware, index=int(index), new_hardware=known is not None and known.index != int(index))


def start_ipv6(kernel: SimulatedDarwin, name: str = "en0") -> None:
    """Give an interface its link-local address."""
    kernel.add_address(name, _LINK_LOCAL.get(name, _TUNNELS_OWN))


def _create_system_tunnel(kernel: SimulatedDarwin, name: str, index: str) -> None:
    _create(kernel, name, index)
    kernel.set_mtu(name, 1380)
    kernel.set_up(name, True)
    start_ipv6(kernel, name)


def _add_address(kernel: SimulatedDarwin, name: str, address: str, mask: str) -> None:
    kernel.add_address(name, f"{address}/{IPv4Network(f'0.0.0.0/{mask}').prefixlen}")


def _advertise(kernel: SimulatedDarwin, name: str, router: str) -> None:
    kernel.advertise_router(name, router, _ADDRESSES[name])


def _add_route(kernel: SimulatedDarwin, destination: str, gateway: str | None, name: str, scoped: str | None) -> None:
    kernel.add_route(destination, name, gateway, scoped=scoped is not None)


def _delete_route(kernel: SimulatedDarwin, destination: str, name: str | None, scoped: str | None) -> None:
    kernel.delete_route(destination, name or "en0", scoped=scoped is not None)


def _stop_autoconfiguration(kernel: SimulatedDarwin, name: str) -> None:
    kernel.forget_router(name)
    for own in kernel.state.named(name).of_version(6):
        if not own.ip.is_link_local:
            kernel.remove_address(name, str(own.ip))


def _stop_ipv6(kernel: SimulatedDarwin, name: str) -> None:
    for own in kernel.state.named(name).of_version(6):
        kernel.remove_address(name, str(own.ip))


def _nothing(kernel: SimulatedDarwin) -> None:
    """An action without any effect in the model. The recorded listeners saw none either."""


_ACTIONS: list[tuple[str, Callable[..., None]]] = [
    (r"create (utun5) index (\d+)", _create_system_tunnel),
    (r"create (\S+) index (\d+)", _create),
    (r"IPv6 started on (\S+)(?: \(.*\))?", start_ipv6),
    (r"IPv6 started", start_ipv6),
    (r"(\S+) inet (\S+) mask (\S+)(?: --> \S+)?", _add_address),
    (r"(\S+) inet6 ([0-9a-f:]+/\d+)", lambda kernel, name, address: kernel.add_address(name, address)),
    (r"(\S+) inet6? (\S+) removed", lambda kernel, name, address: kernel.remove_address(name, address)),
    (r"router advertisement on (\S+) from (\S+) prefix \S+ lifetime \d+", _advertise),
    (r"SIOCAUTOCONF_STOP (\S+) .*", _stop_autoconfiguration),
    (r"SIOCLL_STOP (\S+)", _stop_ipv6),
    (r"IPv6 default interface = (\S+)", lambda kernel, name: kernel.set_ipv6_default(name)),
    (r"route add (\S+) via (\S+) dev (\S+)( scoped)?(?: -> EEXIST)?", _add_route),
    (r"route add (\S+) via (\S+) -> ENETUNREACH", lambda kernel, to, hop: kernel.add_route(to, "en0", hop)),
    (r"route add (\S+) link dev (\S+)( scoped)?", lambda kernel, to, name, scoped: _add_route(kernel, to, None, name, scoped)),
    (r"route delete (\S+) (?:via \S+|link)(?: dev (\S+))?( scoped)?(?: -> 3)?", _delete_route),
    (r"(\S+) delegate -> (\S+)", lambda kernel, name, delegate: kernel.set_delegate(name, delegate)),
    (r"link on (\S+)", lambda kernel, name: kernel.set_link(name, True)),
    (r"link off (\S+)", lambda kernel, name: kernel.set_link(name, False)),
    (r"(\S+) IFF_UP(?: set .*)?", lambda kernel, name: kernel.set_up(name, True)),
    (r"(\S+) IFF_UP cleared .*", lambda kernel, name: kernel.set_up(name, False)),
    (r"mtu (\d+)", lambda kernel, mtu: kernel.set_mtu("utun0", int(mtu))),
    (r"SIOCSIFMTU (\S+) (\d+)", lambda kernel, name, mtu: kernel.set_mtu(name, int(mtu))),
    (r"(\S+) closed", lambda kernel, name: kernel.remove_interface(name)),
    (r"detach (\S+)(?: again)?", lambda kernel, name: kernel.remove_interface(name)),
    (r"join (\S+) on (\S+)", lambda kernel, group, name: kernel.join(name, group)),
    (r"leave", lambda kernel: kernel.leave("en0", "239.1.2.3")),
    (r"ARP reply .*|gratuitous ARP .*|UDP datagram to .*|promiscuous flag in the driver|UDP .* unreachable.*", _nothing),
]


def from_state(state: State) -> SimulatedDarwin:
    """The simulated kernel in a recorded state: its interfaces, addresses, delegates and routes."""
    kernel = SimulatedDarwin()
    links = parse_links(dump(state, "NET_RT_IFLIST2") or b"")
    for recorded in state["interfaces"]:
        name, flags = recorded["name"], int(recorded["flags"], 16)
        hardware = Hardware(recorded["family"], recorded["subfamily"], recorded["ift_type"], flags & ~abi.IFF_UP)
        if name not in ("lo0", "stf0"):
            kernel.add_interface(name, hardware, index=recorded["index"], quiet=True)
        interface = kernel.state.named(name)
        interface.hardware, interface.flags, interface.mtu = hardware, flags, recorded["mtu"]
        expensive = state["ioctl"][name]["replies"].get("SIOCGIFEXPENSIVE")
        if expensive is not None:
            interface.expensive = bool(abi.ifreq.from_buffer_copy(bytes.fromhex(expensive[1])).ifr_ifru.ifr_expensive)
        interface.awdl = recorded["functional_type"] == abi.IFRTYPE_FUNCTIONAL_WIFI_AWDL
        interface.addresses = [ip_interface((address, length)) for address, length in links[interface.index].addresses]
        interface.protocols = {abi.AF_INET if a.version == 4 else abi.AF_INET6 for a in interface.addresses}
    kernel.state.interfaces = {i["index"]: kernel.state.interfaces[i["index"]] for i in state["interfaces"]}
    for recorded in state["interfaces"]:
        interface = kernel.state.named(recorded["name"])
        interface.delegate = recorded["delegate"]
        delegate = kernel.state.interfaces.get(interface.delegate)
        if delegate is not None:
            interface.delegate_hardware = delegate.hardware
        elif interface.delegate:
            # Only its index and its family are known.
            interface.delegate_hardware = _hardware_with(recorded["functional_type"])
    kernel.state.routes = list(_routes(kernel, state))
    primary = kernel.state.default(6)
    if primary is not None:
        kernel.ipv6_default = primary.interface.name
    return kernel


def _hardware_with(functional_type: int) -> Hardware:
    subfamily = 3 if functional_type == abi.IFRTYPE_FUNCTIONAL_WIFI_INFRA else 0
    return Hardware(abi.IFRTYPE_FAMILY_ETHERNET, subfamily, abi.IFT_ETHER, 0)


def _routes(kernel: SimulatedDarwin, state: State) -> Any:
    for _, message in messages(dump(state, "NET_RT_DUMP") or b""):
        header = abi.rt_msghdr.from_buffer_copy(message)
        found = sockaddrs(message, sizeof(header), header.rtm_addrs)
        destination = address_of(found[abi.RTA_DST])
        assert destination is not None
        length: int | None = destination.max_prefixlen
        if not header.rtm_flags & abi.RTF_HOST:
            length = prefix_length_of(found.get(abi.RTA_NETMASK, b""), found[abi.RTA_DST][1])
        gateway = address_of(found[abi.RTA_GATEWAY]) if header.rtm_flags & abi.RTF_GATEWAY else None
        interface = kernel.state.interfaces[header.rtm_index]
        source = address_of(found.get(abi.RTA_IFA, b""))
        assert length is not None
        network = ip_network((destination, length), strict=False)
        yield SimulatedRoute(network, interface, gateway, header.rtm_flags & 0xFFFFFFFF, source)
