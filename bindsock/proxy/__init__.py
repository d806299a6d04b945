"""A local SOCKS5 and HTTP proxy: any program, in any language, gets beneath the VPN through it."""

from bindsock.proxy.server import Proxy

__all__ = ["Proxy"]
