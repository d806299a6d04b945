"""Errors with Darwin's numbers, on any machine."""

from __future__ import annotations

from bindsock.kernel.darwin import abi

_NAMES = {value: name for name, value in vars(abi).items() if name.startswith("E") and isinstance(value, int)}


def darwin_error(number: int) -> OSError:
    """The error that the socket module raises on Darwin for an errno, with Darwin's number."""
    text = f"{_NAMES.get(number, 'errno')} of Darwin"
    if number in (abi.EAGAIN, abi.EINPROGRESS):
        return BlockingIOError(number, text)
    error = OSError(number, text)
    return error if type(error) is not BlockingIOError else _Plain(number, text)


class _Plain(OSError):
    """An error whose number would make Python choose a subclass of OSError, such as BlockingIOError, that is wrong for Darwin."""
