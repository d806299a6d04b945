"""``bindsock demo``: shows what bindsock does, with real packets in network namespaces of its own."""

from bindsock.cli.demo.command import add_parser

__all__ = ["add_parser"]
