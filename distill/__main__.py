"""The start and the end of both commands, during which Ctrl-C shows no traceback. `python -m distill` is `distill`.

An exception in the middle of an import would be a traceback, or lost in a module that catches it. At that time nothing has been
done yet, so the process just ends. Nothing is imported here that takes time.
"""

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable


def main() -> None:
    """The console script `distill`."""
    signal.signal(signal.SIGINT, _leave)
    from distill.cli.exits import main as command

    _run(command)


def gate() -> None:
    """The console script `opallowlist`."""
    signal.signal(signal.SIGINT, _leave)
    from distill.opallowlist.cli import main as command

    _run(command)


def _leave(*_: object) -> None:
    os.write(2, b"interrupted: at once\n")
    os._exit(130)


def _again(lost: "sys.UnraisableHookArgs") -> None:
    """Repeats a Ctrl-C whose exception came where none can be raised, as in the import system's own callbacks."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        _thread.start_new_thread(_interrupt, ())  # once this hook has ended, where an exception would be lost, too
    else:
        sys.__unraisablehook__(lost)


def _interrupt() -> None:
    time.sleep(0.01)
    if os.name == "posix":  # a signal ends what the main thread waits for, too
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


def _run(command: Callable[[], None]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = _again
    try:
        command()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and printed; the interpreter only ends


if __name__ == "__main__":
    main()
