"""Run the command line, and die by SIGKILL just before its N-th durable step.

usage: python killed_at_step.py N ARGUMENT...      (N = 0: never; prints the number of steps)
       python killed_at_step.py N:SIGINT ARGUMENT...     (the whole process group, as by Ctrl-C)

A durable step is what the operating system is asked for: fsync, rename, unlink. Nothing of
spacepatch is replaced.
"""

import os
import signal
import sys

steps = 0


def counting(call, kill_at, name):
    def wrapped(*args, **kwargs):
        global steps
        steps += 1
        if steps == kill_at and name:
            os.killpg(0, signal.Signals[name])
        elif steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    return wrapped


# Workers import this file too, as __mp_main__: only the process that writes is counted.
if __name__ == "__main__":
    number, _, signal_name = sys.argv[1].partition(":")
    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, counting(getattr(os, name), int(number), signal_name))
    from spacepatch.cli import main

    sys.argv = ["spacepatch", *sys.argv[2:]]
    try:
        main()
    finally:
        print(f"steps: {steps}", file=sys.stderr)
