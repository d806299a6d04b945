"""A local SOCKS5 and HTTP proxy, through which programs in any language can bypass the VPN."""

from bindsock.proxy.server import Proxy

__all__ = ["Proxy"]
