"""`python -m distill.opallowlist` is `opallowlist`."""

from distill.opallowlist.cli import main

if __name__ == "__main__":
    main()
