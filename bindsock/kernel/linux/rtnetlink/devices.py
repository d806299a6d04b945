"""Whether an Ethernet-like device is Wi-Fi or a modem; rtnetlink does not tell."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bindsock.kernel.linux.rtnetlink.links import Link

_SIOCGIWNAME = 0x8B01
_SYSFS = Path("/sys/class/net")


class Radio(NamedTuple):
    """The properties of a device that its link message does not contain."""

    wireless: bool
    modem: bool


NO_RADIO = Radio(False, False)


def radio(link: Link, descriptor: int, sysfs: Path = _SYSFS) -> Radio:
    """Ask for the device's type. It takes two or three system calls; ask once for each device.

    :param descriptor: of a socket in the link's network namespace
    """
    if link.kind or link.loopback:
        return NO_RADIO
    if _has_wireless_extensions(link.name, descriptor):
        return Radio(True, False)
    device_type = _device_type(link, sysfs)
    # If sysfs cannot be read, the name tells: systemd's prefix for modems is "ww" (systemd.net-naming-scheme(7)), the kernel's
    # "wwan".
    return Radio(device_type == "wlan", device_type == "wwan" or (not device_type and link.parent and link.name.startswith("ww")))


def _has_wireless_extensions(name: str, descriptor: int) -> bool:
    """Whether SIOCGIWNAME succeeds, as it only does for Wi-Fi. Wi-Fi 7 drivers do not support it (``linux
    net/wireless/core.c``)."""
    encoded = name.encode("utf-8", "surrogateescape")
    try:
        fcntl.ioctl(descriptor, _SIOCGIWNAME, encoded[:15].ljust(32, b"\0"))
    except OSError:
        return False
    return True


def _device_type(link: Link, sysfs: Path) -> str:
    """The device's DEVTYPE in sysfs; empty if there is none.

    sysfs shows the network namespace in which it was mounted, not the caller's. So it is only used if index and hardware address
    are those of the link.
    """
    directory = sysfs / link.name
    try:
        index = (directory / "ifindex").read_text("ascii").strip()
        address = (directory / "address").read_text("ascii").strip()
        if index != str(link.index) or address != link.address.hex(":"):
            return ""
        uevent = (directory / "uevent").read_text("utf-8")
    except (OSError, UnicodeDecodeError, ValueError):
        return ""
    return next((line[8:] for line in uevent.splitlines() if line.startswith("DEVTYPE=")), "")
