"""Tells when the kernel announced something: run as a file, it writes monotonic seconds, 8 bytes each, to standard output.

A process of its own, since in a thread it would wait for the interpreter just when the library is at work. It is given the
descriptor of an event source, and ends with its input.
"""

import os
import select
import struct
import sys
import time


def main(events: int) -> None:
    while True:
        ready, _, _ = select.select([0, events], [], [])
        now = time.monotonic()
        if 0 in ready:
            return
        try:
            while select.select([events], [], [], 0)[0]:
                os.read(events, 1 << 16)
        except OSError:  # events were dropped since nobody had read them: that is an announcement, too
            pass
        os.write(1, struct.pack("d", now))


if __name__ == "__main__":
    main(int(sys.argv[1]))
