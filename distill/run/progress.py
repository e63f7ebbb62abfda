"""Progress of long work: a live bar on a terminal, elsewhere a plain line every ten seconds.

Stages report through a `Narrator` and never print. It writes to standard error: standard output is for the result.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distill.opallowlist.foreign import printable
from distill.run.errors import Interrupted

T = TypeVar("T")
PLAIN_SECONDS = 10.0  # between plain lines


class Bar:
    """The bar of one piece of work with a known number of steps."""

    def __init__(self, narrator: "Narrator", title: str, total: int, done: int, unit: str) -> None:
        self.narrator, self.title, self.total, self.done, self.unit = narrator, title, total, done, unit
        self.first, self.started, self.last_line = done, time.monotonic(), time.monotonic()
        self.text = ""
        self.live: Progress | None = None
        if narrator.live:
            self.live = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
                TimeRemainingColumn(compact=True), TextColumn("{task.fields[text]}", markup=False), console=narrator.console,
                transient=True,
            )  # fmt: skip
            self.live.start()
            self.task = self.live.add_task(printable(title), total=total, completed=done, text="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Counts steps; `note` is shown beside the count until the next one."""
        self.done += steps
        self.text = printable(note) or self.text
        if self.live:
            self.live.update(self.task, completed=self.done, text=self.text)
        elif time.monotonic() - self.last_line >= PLAIN_SECONDS:
            self.last_line = time.monotonic()
            self.narrator.say(f"{self.title}: {self.done}/{self.total} {self.unit}, {self._left()} left {self.text}".rstrip())

    def _left(self) -> str:
        elapsed, steps = time.monotonic() - self.started, self.done - self.first
        seconds = elapsed / steps * (self.total - self.done) if steps else 0
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


@contextmanager
def cancelling_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A thread pool that drops pending work when its block raises."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class Narrator:
    """Writes messages and progress to standard error. `stop()` is whether the user has asked for an orderly stop (Ctrl-C).
    Work that saves its state checks `stop()` and raises Interrupted once it has saved; `track` does so between items."""

    def __init__(self, quiet: bool = False, stop: Callable[[], bool] = lambda: False) -> None:
        self.stop = stop
        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.quiet = quiet
        self.live = self.console.is_terminal and not quiet

    def say(self, text: str) -> None:
        """One line; control characters in it are escaped."""
        if not self.quiet:
            self.console.print(printable(text))

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0, unit: str = "steps") -> Iterator[Bar]:
        """A progress bar for the length of the block; `done` of `total` units are done already."""
        bar = Bar(self, title, total, done, unit)
        try:
            yield bar
        finally:
            if bar.live:
                bar.live.stop()

    def track(self, items: Iterable[T], title: str, total: int, unit: str = "clips") -> Iterator[T]:
        """The items, one by one, with a bar that counts them."""
        with self.bar(title, total, unit=unit) as bar:
            for item in items:
                yield item
                bar.advance()
                if self.stop() and bar.done < total:
                    raise Interrupted(f"{title}, after {bar.done} of {total} {unit}")
