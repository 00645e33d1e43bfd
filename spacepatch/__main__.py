"""The program, as `spacepatch` and as `python -m spacepatch`."""


def main() -> None:
    """Run the command line."""
    # Here, because each worker loads this module anew: it is the main one of the process.
    from spacepatch import cli

    cli.main()


if __name__ == "__main__":
    main()
