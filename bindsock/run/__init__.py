"""Programs that nobody wants to change: everything that their Python code opens leaves by the effective interface.

:func:`install` does it in this process and in the Python processes that it starts, ``bindsock run`` in a program's.
"""

from bindsock.run.installation import Installation, install

__all__ = ["Installation", "install"]
