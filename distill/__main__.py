"""`python -m distill` is `distill`."""

from distill.cli.app import main

if __name__ == "__main__":
    main()
