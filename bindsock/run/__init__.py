"""Covers unmodified programs: the connections of their Python code leave by the effective interface.

:func:`install` covers this process and the Python processes that it starts; ``bindsock run`` covers a program.
"""

from bindsock.run.installation import Installation, install

__all__ = ["Installation", "install"]
