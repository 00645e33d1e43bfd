"""The program, as `spacepatch` and as `python -m spacepatch`."""

import gc
import os
import sys

WITH_WORKERS = ("tokenize", "plan", "probe", "bench")
"""Commands that begin with work for all cores."""


def main() -> None:
    """Run the command line."""
    try:
        _main()
    except KeyboardInterrupt:
        sys.exit(130)  # so early that there is nothing to say


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
    cli.main()


if __name__ == "__main__":
    main()
