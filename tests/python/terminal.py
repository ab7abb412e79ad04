"""Runs a program in a terminal of its own: `terminal.py COLUMNSxROWS STEPS PROGRAM …`.

STEPS is a JSON list of `[text, keys]`: when the text has appeared since the step before, the keys are typed, or, for a key of
`SIGTERM` and the like, the signal is sent; `SIZE COLUMNSxROWS` gives the terminal another size. After the last step the program must end by itself. Printed is, as JSON, what it
wrote, how it ended, and whether the terminal is set as it was.
"""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

# A program that has not done in this time what it is waited for never will.
PATIENCE = 60


def main():
    steps = json.loads(sys.argv[2])
    ours, theirs = pty.openpty()

    def resize(size):
        columns, rows = map(int, size.split("x"))
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    resize(sys.argv[1])
    before = termios.tcgetattr(theirs)
    child = subprocess.Popen(
        sys.argv[3:], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, close_fds=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    output, seen, end = b"", 0, time.monotonic() + PATIENCE

    def read(patience):
        nonlocal output
        if select.select([ours], [], [], patience)[0]:
            output += os.read(ours, 65536)
            return True
        return False

    for text, keys in steps:
        while (found := output.find(text.encode(), seen)) < 0:
            if time.monotonic() > end or (child.poll() is not None and not read(0)):
                child.kill()
                sys.exit(f"{text!r} did not appear after {output[seen:]!r}")
            read(0.1)
        seen = found + len(text.encode())
        if keys.startswith("SIG"):
            child.send_signal(getattr(signal, keys))
        elif keys.startswith("SIZE "):
            resize(keys.removeprefix("SIZE "))
        else:
            os.write(ours, keys.encode())
    while child.poll() is None:
        if time.monotonic() > end:
            child.kill()
            sys.exit(f"it did not end after {output[seen:]!r}")
        read(0.1)
    while read(0):
        pass
    restored = termios.tcgetattr(theirs) == before
    said = {"code": child.returncode, "output": output.decode(errors="replace"), "restored": restored}
    print(json.dumps(said))


main()
