"""The program, as `spacepatch` and as `python -m spacepatch`."""

import sys

WITH_WORKERS = ("tokenize", "plan", "probe", "bench")
"""Commands that begin with work for all cores."""


def main() -> None:
    """Run the command line."""
    # Imported here, because each worker loads this module anew: it is the main one of the process.
    if sys.argv[1:2] and sys.argv[1] in WITH_WORKERS:
        from spacepatch.workers import start_importing

        start_importing()
    from spacepatch import cli

    cli.main()


if __name__ == "__main__":
    main()
