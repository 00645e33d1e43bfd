"""The program, as `spacepatch` and as `python -m spacepatch`."""

import gc
import os
import signal
import sys
from types import FrameType

WITH_WORKERS = ("tokenize", "plan", "probe", "bench")
"""Commands that begin with work for all cores."""


def main() -> None:
    """Run the command line."""
    # Nothing has begun yet, and there is nothing to say. An exception would not do: what is being
    # imported may make another one of it.
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    try:
        _main()
    except KeyboardInterrupt:
        sys.exit(130)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(130)


def _main() -> None:
    # Imported here, because each worker loads this module anew: it is the main one of the process.
    if sys.argv[1:2] and sys.argv[1] in WITH_WORKERS:
        # Each core has a worker, so that threads for matrices would only wait: 0.1 s of start-up.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from spacepatch.workers import start_importing

        start_importing()
    # What is imported stays: a twentieth of the time went into looking for what does not.
    gc.disable()
    from spacepatch import cli

    gc.enable()
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
