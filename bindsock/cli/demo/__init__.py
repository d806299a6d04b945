"""``bindsock demo``: the main job, for real, in network namespaces of its own."""

from bindsock.cli.demo.command import add_parser

__all__ = ["add_parser"]
