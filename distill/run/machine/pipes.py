"""Videos through pipes: `-`, `/dev/stdin` and FIFOs as a file that can be read more than once, and a stream as a file to write to.

Reading and writing wait in short steps, so that Ctrl-C ends them; a reader that goes away ends the work without an error.
"""

import contextlib
import errno
import io
import os
import re
import select
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from distill.run.errors import Interrupted, UsageError
from distill.run.files import temporary_folder

STANDARD = Path("-")
OWN_FILE = re.compile(r"/(?:proc/self|dev)/fd/(\d+)")
WAIT = 0.2  # seconds between looks at whether the user has asked to stop
CHUNK = 1 << 16  # bytes, as many as a pipe holds


class ReaderGone(Exception):
    """Nobody reads the pipe that is written to any more."""


def is_stream(path: Path) -> bool:
    """Whether a path is `-`, a pipe, a device or an open file of this process (`/dev/stdout`): a file must not take its place."""
    return path == STANDARD or (path.exists() and not path.is_file() and not path.is_dir()) or _descriptor(path) is not None


def _descriptor(path: Path) -> int | None:
    """The number of the open file of this process that a path leads to; None where it leads elsewhere."""
    for _ in range(9):
        if match := OWN_FILE.fullmatch(str(path)):
            return int(match[1])
        if not path.is_symlink():
            break
        path = Path(os.path.realpath(path.parent)) / path.readlink()
    return None


def name_of(path: Path, way: str) -> str:
    """What a message calls a path; way: input or output."""
    return f"standard {way}" if path == STANDARD else str(path)


@contextlib.contextmanager
def as_file(source: Path, stop: Callable[[], bool]) -> Iterator[Path]:
    """A file with what `source` holds: itself or, for `-` and pipes, a temporary copy; in errors it has the name of the source.

    Raises UsageError for a terminal and where nothing comes, Interrupted once `stop()` says so.
    """
    own = 0 if source == STANDARD else _descriptor(source)
    if source != STANDARD and (source.is_file() or (own is None and not source.is_fifo())):
        yield source
        return
    name = name_of(source, "input")
    with temporary_folder() as folder:
        file = folder / (name if source == STANDARD else source.name)
        # Without O_NONBLOCK the call would wait for somebody who opens the other end.
        descriptor = os.dup(own) if own is not None else os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            if os.isatty(descriptor):
                raise UsageError(f"{name} is a terminal; send a video into it, as in `cat in.mkv | distill ...`")
            size = _copy(descriptor, file, name, stop)
        finally:
            os.close(descriptor)
        if not size:
            raise UsageError(f"{name} is empty; send a video into it")
        try:
            yield file
        except UsageError as error:
            raise UsageError(str(error).replace(str(file), name)) from None


def _copy(descriptor: int, file: Path, name: str, stop: Callable[[], bool]) -> int:
    size = 0
    with file.open("wb", buffering=0) as out:
        while True:
            if stop():
                raise Interrupted(f"reading {name}, after {size:,} bytes")
            if os.name == "posix" and not select.select([descriptor], [], [], WAIT)[0]:
                continue
            try:
                data = os.read(descriptor, CHUNK)
            except BlockingIOError:
                continue
            if not data:
                return size
            rest = memoryview(data)
            while rest:  # a disk that fills up takes a part first
                rest = rest[out.write(rest) or 0 :]
            size += len(data)


class StreamWriter(io.RawIOBase):
    """A stream to write to. It can be moved in only where it is a file after all, as by `> out.mkv`.

    Raises UsageError for a terminal, ReaderGone and Interrupted from `write`; `error` keeps what it raised, as FFmpeg may not.
    """

    def __init__(self, target: Path, stop: Callable[[], bool]) -> None:
        self.path, self._stop = target, stop  # not `name`: FFmpeg would choose the format by it
        self.error: BaseException | None = None
        own = 1 if target == STANDARD else _descriptor(target)
        self._descriptor = os.dup(own) if own is not None else _open(target, stop)
        if os.isatty(self._descriptor):
            raise UsageError(
                f"{name_of(target, 'output')} is a terminal, and a video is no text; name a file, or send it to one"
            )
        mode = os.fstat(self._descriptor).st_mode
        self._start = (
            os.lseek(self._descriptor, 0, os.SEEK_CUR) if stat.S_ISREG(mode) and not _appends(self._descriptor) else None
        )

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._start is not None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self._start is None:
            raise io.UnsupportedOperation("seek")
        return os.lseek(self._descriptor, offset + (self._start if whence == os.SEEK_SET else 0), whence) - self._start

    def tell(self) -> int:
        return self.seek(0, os.SEEK_CUR)

    def write(self, data: object) -> int:
        whole = rest = memoryview(data)  # type: ignore[arg-type]
        try:
            while rest and self.error is None:
                if self._stop():
                    raise Interrupted(f"writing to {name_of(self.path, 'output')}")
                if os.name == "posix" and not select.select([], [self._descriptor], [], WAIT)[1]:
                    continue
                with contextlib.suppress(BlockingIOError):
                    rest = rest[os.write(self._descriptor, rest[:CHUNK]) :]
        except BrokenPipeError:
            self.error = ReaderGone(f"the reader of {name_of(self.path, 'output')} has closed it")
        except OSError as error:
            self.error = OSError(error.errno, error.strerror, name_of(self.path, "output"))
        except Interrupted as error:
            self.error = error
        return len(whole)  # what fails is raised by `check`, where no FFmpeg stands between

    def check(self) -> None:
        """Raises what has gone wrong in writing."""
        if self.error:
            raise self.error

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _appends(descriptor: int) -> bool:
    if os.name != "posix":
        return False
    import fcntl

    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND)


def _open(target: Path, stop: Callable[[], bool]) -> int:
    while True:
        try:
            descriptor = os.open(target, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            if error.errno != errno.ENXIO:  # a FIFO that nobody reads yet
                raise
            if stop():
                raise Interrupted(f"waiting for a reader of {target}") from None
            time.sleep(WAIT)
        else:
            os.set_blocking(descriptor, True)
            return descriptor
