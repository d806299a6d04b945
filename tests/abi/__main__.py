"""Compile the check for both kinds of Mac; with ``--system``, on a Mac, compile it with the Mac's own complete SDK."""

from __future__ import annotations

import sys

from tests.abi.check import TARGETS, compile_with_system, compile_with_zig, source


def main() -> int:
    if sys.argv[1:] == ["--print"]:
        print(source(), end="")
        return 0
    if sys.argv[1:] == ["--system"]:
        text = source(whole_sdk=True)
        results = {"this machine's SDK": compile_with_system(text)}
    elif not sys.argv[1:]:
        text = source()
        results = {target: compile_with_zig(text, target) for target in TARGETS}
    else:
        print("usage: python -m tests.abi [--system | --print]", file=sys.stderr)
        return 2
    for target, complaint in results.items():
        print(f"{target}: {text.count('_Static_assert')} assertions {'hold' if complaint is None else 'do not all hold'}")
        if complaint is not None:
            print(complaint, file=sys.stderr)
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
