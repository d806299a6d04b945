"""What to install when a module needs a package that bindsock itself does not."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import optional packages in the block. Where one is missing, the error names the extra that brings it.

    .. code-block:: python

        with needs("httpx"):
            import httpx

    :param extra: the name of the extra in ``pip install "bindsock[extra]"``
    :raises ImportError: a package is missing
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f'{error.msg}: pip install "bindsock[{extra}]"'
        raise ModuleNotFoundError(message, name=error.name, path=error.path) from error
