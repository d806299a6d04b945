"""The command line: ``bindsock``, or ``python -m bindsock``."""

from bindsock.cli.application import main

__all__ = ["main"]
