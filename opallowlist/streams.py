"""Standard output and error of a command that must end with its own exit code, whatever becomes of them.

A reader may close the pipe, a disk may fill up, either stream may be closed before the command starts. Python, typer and
rich each answer in their own way: a traceback, exit code 1, silence. With `take_over` a write never raises, and at the end
`lost_output` says whether the result got where it should. Standard library only.
"""

import errno
import io
import os
import sys
from typing import Any


class _Stream(io.RawIOBase):
    """The bytes below `sys.stdout` or `sys.stderr`; after the first error it drops what it is given."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.target.fileno())

    def isatty(self) -> bool:
        return bool(self.target.isatty())

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                written = self.target.write(data)
                if written is not None:
                    return int(written)
                self.error = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            except OSError as error:
                self.error = error
        return len(data)


class _Closed(io.RawIOBase):
    """Stands for a stream that was closed before the command started."""

    def __init__(self, descriptor: int) -> None:
        # The null device takes its number, lest the next file that is opened gets it and whatever writes to it.
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor)
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor

    def write(self, data: Any) -> int:
        raise OSError(errno.EBADF, "it is closed")


def take_over() -> None:
    """Replace `sys.stdout` and `sys.stderr`, unless a program or a test has put something else there."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        old: Any = getattr(sys, name)
        if old is not getattr(sys, f"__{name}__"):
            continue
        target = _Closed(descriptor) if old is None else getattr(old.buffer, "raw", old.buffer)
        new = io.TextIOWrapper(
            io.BufferedWriter(_Stream(target)),
            encoding="utf-8" if old is None else old.encoding,
            errors="replace" if name == "stdout" else "backslashreplace",  # a terminal without ✗ gets ?, not an exception
            line_buffering=name == "stderr" or (old is not None and old.line_buffering),
        )
        setattr(sys, name, new)


def lost_output() -> str:
    """What to say if standard output did not get all that was printed; empty if it did, or if its reader closed the pipe."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(raw, _Stream):
        return ""
    sys.stdout.flush()
    if raw.error is None or isinstance(raw.error, BrokenPipeError):
        return ""
    return f"standard output could not be written ({raw.error.strerror or raw.error}); send it to another file or pipe"
