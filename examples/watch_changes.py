"""Prints each change of the effective interface, the uplink that carries the VPN's traffic.

Use it if the program itself must know of changes: to refresh a cache, to lower a bit rate on cellular, to log.
It reports changes of the path: from one Wi-Fi to another is a change although both are wlan0; a new container interface is not.
"""

import argparse
import asyncio
import contextlib

import bindsock


def described(path: bindsock.Path | None) -> str:
    if path is None:
        return "nothing"
    return f"{path.interface} ({', '.join(sorted(map(str, path.addresses)))}) via {path.gateway}"


async def watch(preferences: bindsock.Preferences) -> None:
    async with bindsock.TransportFactory(preferences) as factory:
        changes = factory.changes()
        try:
            print("now", factory.effective_interface().name)
        except bindsock.NoEffectiveInterface as error:
            print(error)
        async for change in changes:
            for name, family in (("IPv4", change.ipv4), ("IPv6", change.ipv6)):
                if family.moved:
                    print(f"{name}: {described(family.old_path)} -> {described(family.new_path)} [{change.cause}]")


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the changes of the effective interface until Ctrl-C.")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="interfaces not to use, such as docker*"
    )
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(watch(bindsock.Preferences(exclude=arguments.exclude)))


if __name__ == "__main__":
    main()
