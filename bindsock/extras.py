"""What to install when a module needs a package that bindsock itself does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class needs:
    """Import optional packages in the block. Where one is missing, the error names the extra that brings it.

    .. code-block:: python

        with needs("httpx"):
            import httpx

    A class, and no :func:`contextlib.contextmanager`: of that a type checker must suppose that it suppresses errors, so that what
    is imported in the block, and every class derived from it, would have no known type.

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
