"""The check: C source made from :mod:`bindsock.kernel.darwin.abi`, compiled but never run.

Each structure's size, each field's offset and size and each constant becomes a ``_Static_assert``. So a cross compiler on any
system checks them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bindsock.kernel.darwin import abi

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from ctypes import Structure

TARGETS = ("aarch64-macos", "x86_64-macos")

HEADERS = (
    "stddef.h",
    "sys/types.h",
    "sys/errno.h",
    "sys/ioccom.h",
    "sys/socket.h",
    "sys/sockio.h",
    "sys/sysctl.h",
    "net/if.h",
    "net/if_dl.h",
    "net/if_types.h",
    "net/if_var.h",
    "net/net_kev.h",
    "net/route.h",
    "netinet/in.h",
    "netinet/tcp.h",
)


def constants() -> dict[str, int]:
    """The constants that are in the SDK's headers."""
    return {
        name: value
        for name, value in vars(abi).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, int) and name not in abi.PRIVATE
    }


def source(
    *,
    whole_sdk: bool = False,
    structures: Sequence[type[Structure]] = abi.STRUCTURES,
    values: Mapping[str, int] | None = None,
) -> str:
    """The C source of the check.

    :param whole_sdk: also check what ziglang's subset of the headers lacks; for Apple's own compiler
    """
    headers = [*HEADERS, *dict.fromkeys(abi.UNSHIPPED.values())] if whole_sdk else HEADERS
    lines = [f"#include <{header}>" for header in headers]
    for structure in structures:
        if whole_sdk or structure.__name__ not in abi.UNSHIPPED:
            lines += _structure(structure)
    for name, value in (constants() if values is None else values).items():
        if whole_sdk or name not in abi.UNSHIPPED:
            lines.append(f'_Static_assert((unsigned long){name} == {value}ul, "{name}");')
    return "\n".join(lines) + "\n"


def _structure(structure: type[Structure]) -> Iterator[str]:
    name = f"struct {structure.__name__}"
    yield f'_Static_assert(sizeof({name}) == {_size(structure)}, "sizeof {name}");'
    for field, *_ in structure._fields_:
        if field.startswith("_"):
            continue
        descriptor = getattr(structure, field)
        place = f"{structure.__name__}.{field}"
        yield f'_Static_assert(offsetof({name}, {field}) == {descriptor.offset}, "offset of {place}");'
        yield f'_Static_assert(sizeof((({name} *)0)->{field}) == {descriptor.size}, "size of {place}");'


def _size(structure: type[Structure]) -> int:
    return len(bytes(structure()))


def compile_with_zig(text: str, target: str) -> str | None:
    """Compile the source for a target, with zig.

    :return: the compiler's errors, ``None`` without any
    """
    with tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": directory, "ZIG_LOCAL_CACHE_DIR": directory}
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target]
        return _compile(text, command, environment, Path(directory))


def compile_with_system(text: str) -> str | None:
    """Compile the source with the machine's ``cc``, which has the complete SDK on a Mac.

    :return: the compiler's errors, ``None`` without any
    """
    with tempfile.TemporaryDirectory() as directory:
        return _compile(text, ["cc"], dict(os.environ), Path(directory))


def _compile(text: str, command: Sequence[str], environment: Mapping[str, str], directory: Path) -> str | None:
    path = directory / "abi.c"
    path.write_text(text)
    arguments = [*command, "-std=gnu11", "-c", "-o", str(directory / "abi.o"), str(path)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr or f"{command} ended with {done.returncode}"
