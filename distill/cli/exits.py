"""The console script: runs the command line and turns errors into one line on standard error and an exit code.

Exit codes: 0 done, 1 a gate or check failed, 2 could not run (or could not print its result), 130 interrupted and
resumable; nothing else ever. A reader that closes the pipe changes no code.
"""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from distill.cli import output
from distill.cli.app import app
from distill.opallowlist import streams
from distill.opallowlist.foreign import printable, printable_lines
from distill.run.errors import GateFailed, Interrupted, UsageError
from distill.run.files import with_final_names
from distill.run.machine.extras import extra_of, how_to_install

# Typer does not export the base of its usage errors.
_CLICK_EXCEPTION = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main() -> None:
    """The console script, once it is imported."""
    # Before torch loads its OpenMP: threads that spin while they wait cost a training step 3 to 20 times its time
    # on a machine where anything else runs, and gain nothing measurable where nothing does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "--debug" not in sys.argv:  # OpenCV and its FFmpeg print names as they are, and we report what fails
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    warnings.showwarning = _warn
    streams.take_over()
    code = run_command(sys.argv[1:])
    if code != 130 and (problem := streams.lost_output()):
        print(f"distill: {problem}", file=sys.stderr)
        code = 2
    sys.exit(code)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A library's warning, on one line."""
    print(f"{category.__name__}: {printable(' '.join(str(message).split()))}", file=sys.stderr)


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command line in this process; returns its exit code, with any error already reported."""
    printed = output.objects_printed
    try:
        code = app(list(arguments), standalone_mode=False) or 0
        if code == 130:  # typer turns Ctrl-C into this exit code
            raise KeyboardInterrupt
        return int(code)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, typer.Abort) and isinstance(error.__cause__, EOFError):  # so typer hides one
            error = error.__cause__
        if "--debug" in arguments and not isinstance(error, KeyboardInterrupt):
            print(printable_lines("".join(traceback.format_exception(error))), file=sys.stderr)
        message, code = describe_error(error)
        message = " ".join(with_final_names(message).split())
        if "--json" in arguments and output.objects_printed == printed:  # else the result states what it lacks
            output.print_json({"schema": 1, "error": message, "exit_code": code})
        if message:  # `distill` alone has printed the help
            print(f"distill: {printable(message)}", file=sys.stderr)
        return code


def _is_of_ctrl_c(error: BaseException | None) -> bool:
    """Whether Ctrl-C is the reason: in the middle of its import an extension module turns it into an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def describe_error(error: BaseException) -> tuple[str, int]:
    """The message (what, where, the way out) and the exit code of an error."""
    if not isinstance(error, GateFailed | Interrupted | UsageError) and _is_of_ctrl_c(error):
        error = KeyboardInterrupt()
    match error:
        case GateFailed():
            return str(error), 1
        case Interrupted() | KeyboardInterrupt():
            return f"interrupted: {str(error) or 'at once'}", 130
        case UsageError():
            return str(error), 2
        case _ if isinstance(error, _CLICK_EXCEPTION):
            return error.format_message(), 2  # type: ignore[attr-defined]
        case OSError(errno=errno.ENOSPC):
            where = f" at {error.filename}" if error.filename else ""
            return f"the disk is full{where}; free some space and run the command again", 2
        case OSError():
            return f"{error.filename or 'file'}: {error.strerror or error}", 2
        case ModuleNotFoundError(name=str(name)) if extra := extra_of(name):
            return f"{name} is not installed; {how_to_install(extra)}", 2
    return f"internal error: {type(error).__name__}: {error}; put --debug before the verb for a traceback", 2
