"""`python -m spacepatch`."""

from spacepatch.cli import main

if __name__ == "__main__":
    main()
