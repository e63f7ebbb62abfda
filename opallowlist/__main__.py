"""`python -m distill.opallowlist` is `opallowlist`."""

import signal

from distill.opallowlist.cli import main

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # until here Ctrl-C just ends the process: see distill/__init__.py
    try:
        main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and printed; the interpreter only ends
