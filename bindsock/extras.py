"""Imports optional packages, and says which extra to install if one is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class needs:
    """Import optional packages in a ``with`` block. If one is missing, the error names the extra that installs it.

    .. code-block:: python

        with needs("httpx"):
            import httpx

    This is a class, because type checkers assume that a :func:`contextlib.contextmanager` may suppress errors. The names imported
    in the block, and the classes derived from them, would then have no known type.

    :param extra: the name of the extra in ``pip install "bindsock[extra]"``
    :raises ImportError: a package is missing
    """

    def __init__(self, extra: str) -> None:
        self._extra = extra

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, ModuleNotFoundError):
            message = f'{error.msg}: pip install "bindsock[{self._extra}]"'
            raise ModuleNotFoundError(message, name=error.name, path=error.path) from error
