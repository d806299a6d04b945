"""Records when the kernel sends events. Run as a script, it writes times to standard output: monotonic seconds, 8 bytes each.

This is a separate process, since a thread would have to wait for the interpreter while the library works. It gets the descriptor
of an event source as its argument, and ends when its standard input is closed.
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
        except OSError:  # the kernel dropped events that were not read in time: that is an event, too
            pass
        os.write(1, struct.pack("d", now))


if __name__ == "__main__":
    main(int(sys.argv[1]))
